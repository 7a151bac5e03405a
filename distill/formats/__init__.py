"""Rows in and out: importers, exporters, and the shapes that they share."""
