"""The torch reference model, shared by export and train. Needs the `torch` extra."""
