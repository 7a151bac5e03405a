"""What the report shows, worked out of a run's files."""
