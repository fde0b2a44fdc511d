"""Load: events over HTTP, of a kind and at a pace that can be had again."""
