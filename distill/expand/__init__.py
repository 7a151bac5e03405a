"""Seeds to tasks: the stage `expand`."""
