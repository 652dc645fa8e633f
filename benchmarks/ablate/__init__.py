"""Many trainings that differ by design, each judged alike: `tinyllava-edge ablate`."""
