"""`python -m tinyllava_edge`."""

from tinyllava_edge.cli import main

main()
