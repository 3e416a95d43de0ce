"""Assembly, one file a verb, no arithmetic."""
