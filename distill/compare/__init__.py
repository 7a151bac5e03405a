"""Student to scores: the stage `compare`."""
