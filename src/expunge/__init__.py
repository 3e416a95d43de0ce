"""expunge: make a causal language model forget chosen training data, and prove it."""

__version__ = "0.1.0"
