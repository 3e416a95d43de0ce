"""The SOUL family's command lines, translated into the one configuration; they have no pipelines of their own."""
