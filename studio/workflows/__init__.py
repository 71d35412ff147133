"""Workflows that need both training and composition."""
