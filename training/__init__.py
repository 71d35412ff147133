"""Training: datasets, adapter methods, losses, the trainer; and the recipes of the embedded models."""
