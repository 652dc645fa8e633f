"""nano, the embedded model, from nothing; README.md says how."""
