"""The nouns, error kinds, clock and contracts that every other folder speaks. No I/O."""
