"""Read run directories: tables, plots, pages. Imports no torch."""
