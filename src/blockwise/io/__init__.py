"""What crosses the border of the program: files, downloads, and names that others chose."""
