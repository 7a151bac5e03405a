"""Scores to report.html: the stage `report`."""
