"""The benefit of design decisions: ratios against a named baseline, measured in one run on one machine."""
