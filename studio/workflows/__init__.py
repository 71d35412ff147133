"""Workflows that need more than one room: the demo."""
