"""Files, hashes, console, processes and the registry of parts: what everything else builds on."""
