"""Files that we did not make, held against a checkpoint stage by stage: docs/against.md."""
