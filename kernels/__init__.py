"""Kernels: pure tensor functions with a plain torch reference, and faster paths beside it."""
