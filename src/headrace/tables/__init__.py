"""Delta tables under the contract `model.tables`."""
