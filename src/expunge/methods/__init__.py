"""What to optimise: losses, retain terms, objectives."""
