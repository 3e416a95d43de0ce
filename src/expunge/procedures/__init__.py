"""Unlearning by recipe: what a method needs done before it trains, and methods that are no loss."""
