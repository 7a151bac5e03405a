"""Collects answers through a provider's batch interface."""
