"""`tinyllava-edge bench`: the same request on every runtime and variant, side by side."""
