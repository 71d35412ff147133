"""Tests of packaging, the command line's frame and the import rules."""
