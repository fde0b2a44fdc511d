"""Which log, storage and runner a pipeline runs on, and how its port is reached: a value beside it.

The pipeline file says nothing of it and is the same on a laptop and on a cluster. A `Deployment` is
read from `headrace.toml`, flags and the environment (`app/deployment_file.py`), and kept in the
data directory, so that every verb finds the same log and tables.
"""

from __future__ import annotations

import msgspec


class KafkaSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The log in a Kafka cluster."""

    bootstrap: str
    """`host:port,…` of some brokers."""
    prefix: str = ""
    """Stands before the name of every topic, so that several pipelines can share a cluster."""
    replication: int = 3
    """How many brokers keep each new topic."""
    insync_min: int = 2
    """On how many of them a record is before it is acknowledged."""
    properties: dict[str, str] = {}
    """librdkafka's own, such as `security.protocol`; `${NAME}` is taken from the environment."""


class TableSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where tables and views are kept."""

    url: str = ""
    """An absolute folder, `s3://bucket/prefix` or `hdfs://host:port/folder`; empty: the data
    directory."""
    options: dict[str, str] = {}
    """Of the storage, such as `endpoint`; `${NAME}` is taken from the environment."""


class SparkSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Epochs run in Spark's tasks."""

    master: str
    """`local[2]`, `spark://host:port`, `yarn`, `k8s://…`."""
    settings: dict[str, str] = {}
    """Spark's own, such as `spark.executor.memory`; `${NAME}` is taken from the environment."""
    memory_limit: str = "1GB"
    """What DuckDB may take in each task."""


class HttpSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the public port is reached."""

    tls_cert: str = ""
    """File of the certificate and of what leads to who signed it, PEM; empty: no TLS."""
    tls_key: str = ""
    """File of its private key, PEM, without a password."""
    redirect_port: int = 0
    """A second port, whose every answer to plain HTTP is the same address with https; 0: none."""
    hsts_s: int = 0
    """How long a browser is to ask by https alone (RFC 6797), seconds; 0: it is not told so."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks whose X-Forwarded-For and X-Forwarded-Proto are believed."""
    host_names: tuple[str, ...] = ()
    """Names by which readers may ask where no tokens are asked for, beside those of loopback."""

    @property
    def is_tls(self) -> bool:
        """Whether the port speaks TLS."""
        return bool(self.tls_cert)


class Deployment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a pipeline runs. The default is all on one machine, in the data directory."""

    kafka: KafkaSettings | None = None
    """The log; None is the embedded one."""
    tables: TableSettings = TableSettings()
    spark: SparkSettings | None = None
    """The runner; None is DuckDB in the process role itself."""
    http: HttpSettings = HttpSettings()
    """Of one run; unlike the others it is not taken over from the run before."""

    @property
    def place(self) -> tuple[str, ...]:
        """What tells apart where records and tables are; it changes by `headrace promote` alone.

        Brokers may come and go, so their addresses do not count, and neither does the runner.
        """
        log = ("embedded",) if self.kafka is None else ("kafka", self.kafka.prefix)
        return (*log, self.tables.url.rstrip("/"))
