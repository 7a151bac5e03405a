"""Exports a trained student: adapter, merged weights, GGUF or Ollama folder."""
