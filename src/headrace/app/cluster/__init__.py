"""A local trial cluster, Kafka and Spark on this machine: for tests and for trying things."""
