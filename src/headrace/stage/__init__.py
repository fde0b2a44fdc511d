"""Records to rows, dead letters and partial aggregates: validate, decode, row SQL, fold."""
