"""Texts: tokens, similarity, and reading replies."""
