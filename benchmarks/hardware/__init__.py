"""`tinyllava-edge hardware-check`: everything an owner's device can show, beside what was expected of it."""
