"""The SOUL family's command lines, translated into our configuration; they use the normal pipelines."""
