"""The command line: `python train.py model=vgg16 block=all`."""

from blockwise.cli import train

if __name__ == "__main__":
    train()
