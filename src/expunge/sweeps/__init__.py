"""Many jobs: command lines with a run folder each, on one machine, a SLURM cluster or a Ray cluster."""
