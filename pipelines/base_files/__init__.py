"""Reading base models from folders, single checkpoints and the hub."""
