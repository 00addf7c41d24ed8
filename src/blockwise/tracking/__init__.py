"""The progress display and the loggers."""
