"""Rows with stable ids, encoded examples, pairs and batches."""
