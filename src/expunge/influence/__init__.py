"""Quantities about examples: the gradient of each forget row, projected on the gradient of all of them."""
