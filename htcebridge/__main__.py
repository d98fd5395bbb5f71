"""`python -m htcebridge` is the console script."""

from htcebridge.cli import main

main()
