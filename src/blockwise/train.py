"""`python -m blockwise.train`: the same as `train.py`, for an installed package."""

from blockwise.cli import train

if __name__ == "__main__":
    train()
