"""`tinyllava-edge verify`: the parity ladder, from weights to greedy answers."""
