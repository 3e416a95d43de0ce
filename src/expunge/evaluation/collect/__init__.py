"""Collectors: they run the model once per (model, view, settings) and write a table each."""
