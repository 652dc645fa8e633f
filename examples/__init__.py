"""What was made with tinyllava-edge, to read and to repeat. Not installed."""
