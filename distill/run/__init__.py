"""The run folder: its record, its layout, what a stage is given, and its cards."""
