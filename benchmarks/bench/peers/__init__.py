"""Rivals measured beside a bundle's own cells, each in a process of its own environment."""
