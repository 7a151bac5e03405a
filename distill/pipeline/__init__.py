"""The stages of a recipe over a run folder, and commands that span several stages."""
