"""Metrics: one a file, each a function of tables and other metrics' results. No torch, no model."""
