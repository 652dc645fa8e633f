"""A bundle's card, from files alone, and its way to the hub."""
