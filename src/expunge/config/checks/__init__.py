"""The checks of a configuration, one file per section."""
