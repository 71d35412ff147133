"""Figures about the whole service, each printed by a command."""
