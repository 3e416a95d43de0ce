"""Plan, collect once, then metrics as functions of tables."""
