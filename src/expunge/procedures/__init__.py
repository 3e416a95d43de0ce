"""Unlearning by recipe: preparation that a method needs before training, and methods that are not a loss."""
