"""Use the winner: write a trained network to a folder that other tools read, and read it again."""
