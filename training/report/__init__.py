"""The report of a run: one page with curves, sample pictures, the choice and how to use the adapter."""
