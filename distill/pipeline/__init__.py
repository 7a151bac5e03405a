"""The stages of a recipe over a run folder, and commands that need several of them."""
