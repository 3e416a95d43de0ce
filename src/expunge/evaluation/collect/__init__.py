"""Collectors: the only code here that calls the model. Each runs once per (model, view, settings) and writes a table."""
