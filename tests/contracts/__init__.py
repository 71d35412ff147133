"""What every method, strategy, patch, format and op must do."""
