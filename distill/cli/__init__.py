"""The command line: parses, calls what lies below, and prints."""
