"""What changes at run time: tokens, sources, leases."""
