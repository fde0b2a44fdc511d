"""What a user writes, checked and compiled to a plan."""
