"""A local trial cluster: three Kafka brokers on this machine, for tests and for trying things."""
