"""Pipeline files that `headrace init` writes; each runs as it is."""
