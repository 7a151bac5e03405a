"""Collecting through the batch interface of a provider."""
