"""Kept rows to a student: the stage `train`."""
