"""What the commands other than `train` compute and print."""
