"""HTTP out: tables, views and queries as answers."""
