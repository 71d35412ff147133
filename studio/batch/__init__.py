"""Batches: a file of requests, expanded, ordered, drawn in groups, and resumed to the byte."""
