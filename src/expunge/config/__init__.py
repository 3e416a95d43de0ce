"""Compose, validate and list choices. Only this room imports hydra; it imports no torch."""
