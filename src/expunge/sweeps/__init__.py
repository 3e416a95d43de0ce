"""Many jobs: command lines with a run folder each, run side by side on one machine, a SLURM cluster or a Ray cluster."""
