"""A trained student in the forms that others read: an adapter, whole weights, a GGUF file, a folder for Ollama."""
