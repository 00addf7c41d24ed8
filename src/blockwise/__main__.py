"""`python -m blockwise`."""

from blockwise.cli import main

main()
