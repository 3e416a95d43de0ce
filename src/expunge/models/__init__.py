"""Weights and tokenizers, references, outputs at label positions."""
