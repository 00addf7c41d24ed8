"""What a user watches: the progress display and the loggers."""
