"""One small file for each ecosystem that needs more than the module."""
