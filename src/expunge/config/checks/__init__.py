"""What can be wrong with a configuration, one file a section."""
