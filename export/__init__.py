"""Checkpoint -> bundle."""
