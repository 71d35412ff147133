"""SaRA: train the weights that do nothing (Hu et al. 2025, arXiv 2409.06633)."""
