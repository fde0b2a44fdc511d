"""Stand-ins for GBIF, OBIS and iDigBio on one loopback port, for tests and demos."""

from headrace.testing.services.server import Services, services

__all__ = ["Services", "services"]
