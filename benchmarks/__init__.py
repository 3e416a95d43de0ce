"""What the package's decisions are worth: each a ratio against a named baseline, both measured in one run on one machine."""
