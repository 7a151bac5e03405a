"""Reading and writing rows: importers, exporters, and the schemas they share."""
