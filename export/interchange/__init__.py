"""A checkpoint in other programs' formats: docs/interchange.md."""
