"""Epochs: the loop, the ledger, the one commit, retention."""
