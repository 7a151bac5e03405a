"""The journal of a run: every answer that was paid for."""
