"""The command line: verbs call pipelines; a UserError becomes a message and exit code 2."""
