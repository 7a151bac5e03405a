"""The run folder: record, layout, stage context, endpoints and cards."""
