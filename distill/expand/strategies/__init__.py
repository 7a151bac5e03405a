"""Strategies that grow tasks from seeds."""
