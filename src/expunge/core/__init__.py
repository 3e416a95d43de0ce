"""Named types that cross rooms, errors, fingerprints and the run directory. Imports no torch."""
