"""The SOUL family's command lines, translated into the one configuration: flags, methods, data sets; no pipeline of their own."""
