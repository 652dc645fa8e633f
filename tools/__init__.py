"""Commands for who works on this repository: they make what its pages show. Not installed."""
