"""What the processes do that work on jobs: module-level functions that take a job's folder and nothing else."""
