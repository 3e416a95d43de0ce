"""Compose, validate and list choices. The only room that imports hydra; imports no torch."""
