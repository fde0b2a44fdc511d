"""`POST /v1/sql`: one SELECT of a user's, run in a process that can do nothing else."""
