"""Partitioned, durable logs under the contract `model.log`."""
