"""`tinyllava-edge eval` and `hub-check`: question sets and their scores."""
