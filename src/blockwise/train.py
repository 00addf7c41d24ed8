"""`python -m blockwise.train`: what `train.py` runs, where there is no checkout."""

from blockwise.cli import train

if __name__ == "__main__":
    train()
