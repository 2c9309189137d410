"""What Slurm is told about our jobs, so that they land on the right GPUs with enough of everything."""
