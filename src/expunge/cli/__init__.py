"""Verbs to pipelines; a UserError becomes a message and exit code 2."""
