"""The namespace in which Hydra looks for plugins."""
