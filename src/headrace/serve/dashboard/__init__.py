"""What people see: pages made here, kept up to date by a little script; see `handlers.py`."""
