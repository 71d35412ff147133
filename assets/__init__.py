"""Data shipped with the package, read through importlib.resources, and the toy world's renderer."""
