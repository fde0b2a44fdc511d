"""What can be pulled from, under the contract `model.source`."""
