"""Text processing: tokens, similarity, parsing of replies."""
