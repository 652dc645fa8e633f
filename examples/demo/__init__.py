"""nano is asked what it was made for, about pictures that it never saw: `python -m examples.demo`."""
