"""Tasks to sessions: the stage `collect`."""
