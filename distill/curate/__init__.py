"""Sessions to kept rows: the stage `curate`."""
