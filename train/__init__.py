"""Checkpoint -> better checkpoint."""
