"""Tests; not packaged."""
