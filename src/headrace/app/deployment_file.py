"""`headrace.toml`: reads it, lets flags and the environment override it, keeps what came of it.

What a data directory was begun with is kept there, because its tables and its log belong together:
another log, or tables elsewhere, are refused, and `headrace promote` is the one way over.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from headrace.control.clients import Proxies
from headrace.control.files import replace
from headrace.control.hosts import check_name
from headrace.model.deployment import (
    Deployment,
    HttpSettings,
    KafkaSettings,
    SparkSettings,
    TableSettings,
)
from headrace.model.errors import Invalid
from headrace.model.layout import Layout

FILE = "headrace.toml"
PORT_MAX = 65_535
NOT_SAID = HttpSettings()
_FILES = ("tls_cert", "tls_key")


@dataclass(frozen=True)
class Wanted:
    """What the command line and the environment say of a deployment; None where they do not."""

    config: Path | None = None
    """The file; None takes `headrace.toml` of the working folder if there is one."""
    kafka: str | None = None
    """Brokers."""
    tables: str | None = None
    """URL of the tables."""
    spark: str | None = None
    """Spark's master."""
    http: HttpSettings = NOT_SAID
    """How the public port is reached; what is empty is not said."""


def read(path: Path) -> Deployment:
    """Return the deployment that a file declares; `Invalid` if it cannot be understood."""
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
        return msgspec.convert(told, Deployment)
    except OSError as e:
        raise Invalid(f"{path} cannot be read: {e.strerror}", code="bad_deployment") from e
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise Invalid(f"{path} is no TOML: {e}", code="bad_deployment") from e
    except msgspec.ValidationError as e:
        raise Invalid(
            f"{path} says what nothing here understands: {e}",
            hint="It has the tables [kafka], [tables], [spark] and [http]; see docs/deploy.md.",
            code="bad_deployment",
        ) from e


def choose(wanted: Wanted, layout: Layout) -> Deployment:
    """Return the deployment to run a data directory in.

    The file comes first, or where there is none what the directory was run in last; what flags and
    environment say goes over it. `Invalid` if records or tables would be elsewhere than they are.
    """
    before = kept(layout)
    chosen = wish(wanted, before or Deployment())
    began = before or (Deployment() if layout.log.is_dir() else None)
    if began is not None and began.place != chosen.place:
        raise Invalid(
            f"{layout.root} has its records in {_words(began)}; this run wants {_words(chosen)}",
            hint=_way(began, chosen),
            code="other_place",
        )
    return chosen


def wish(wanted: Wanted, before: Deployment) -> Deployment:
    """Return the deployment that is asked for; `before` is what there is without a file."""
    config = wanted.config or (Path(FILE) if Path(FILE).is_file() else None)
    # Certificates and names are of one run, as its port is.
    base = msgspec.structs.replace(before, http=HttpSettings())
    chosen = _overridden(read(config) if config is not None else base, wanted)
    _check(chosen)
    return chosen


def kept(layout: Layout) -> Deployment | None:
    """Return what a data directory was run in last; None before the first run."""
    try:
        return msgspec.json.decode(layout.deployment.read_bytes(), type=Deployment)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except msgspec.DecodeError as e:
        raise Invalid(
            f"{layout.deployment} is not what this version writes: {e}",
            hint="Open the data directory with the version of Headrace that wrote it.",
            code="bad_deployment",
        ) from e


def keep(layout: Layout, deployment: Deployment) -> None:
    """Keep what a data directory is run in, durably, all or nothing."""
    replace(layout.deployment, msgspec.json.format(msgspec.json.encode(deployment)))


def _overridden(base: Deployment, wanted: Wanted) -> Deployment:
    changed: dict[str, object] = {}
    if wanted.kafka is not None:
        changed["kafka"] = (
            msgspec.structs.replace(base.kafka, bootstrap=wanted.kafka)
            if base.kafka is not None
            else KafkaSettings(wanted.kafka)
        )
    if wanted.tables is not None:
        # The options are of the storage that the file names.
        same = wanted.tables == base.tables.url
        changed["tables"] = TableSettings(wanted.tables, base.tables.options if same else {})
    if wanted.spark is not None:
        changed["spark"] = (
            msgspec.structs.replace(base.spark, master=wanted.spark)
            if base.spark is not None
            else SparkSettings(wanted.spark)
        )
    said = {name: value for name, value in msgspec.structs.asdict(wanted.http).items() if value}
    http = msgspec.structs.replace(base.http, **said)
    # Roles may be started from elsewhere.
    files = {name: str(Path(path).absolute()) for name in _FILES if (path := getattr(http, name))}
    changed["http"] = msgspec.structs.replace(http, **files)
    return msgspec.structs.replace(base, **changed)


def _check(deployment: Deployment) -> None:
    url = deployment.tables.url
    scheme, found, _ = url.partition("://")
    if url and not (Path(url).is_absolute() if not found else scheme in {"s3", "hdfs"}):
        raise Invalid(
            f"Tables cannot be kept at {url}",
            hint="Give an absolute folder, s3://bucket/prefix or hdfs://host:port/folder.",
            code="bad_deployment",
        )
    kafka = deployment.kafka
    if kafka is not None and not (kafka.bootstrap and 1 <= kafka.insync_min <= kafka.replication):
        raise Invalid(
            "Kafka needs the address of a broker, and as many copies as are waited for",
            hint='[kafka] bootstrap = "host:9092", 1 <= insync_min <= replication',
            code="bad_deployment",
        )
    _check_http(deployment.http)


def _check_http(http: HttpSettings) -> None:
    Proxies(http.trusted_proxies)
    for name in http.host_names:
        check_name(name)
    if bool(http.tls_cert) != bool(http.tls_key):
        raise Invalid(
            "A certificate and its private key go together",
            hint="Give both: --tls-cert FILE --tls-key FILE.",
            code="bad_deployment",
        )
    if not 0 <= http.redirect_port <= PORT_MAX or http.hsts_s < 0:
        raise Invalid(
            "The port that redirects, or how long browsers are to ask by https, is no such number",
            hint="redirect_port is at most 65535, and neither is below zero.",
            code="bad_deployment",
        )
    if (http.redirect_port or http.hsts_s) and not http.is_tls:
        raise Invalid(
            "There is no https to send anybody to without a certificate",
            hint="Give one with --tls-cert and --tls-key; `headrace dev-cert` makes one.",
            code="bad_deployment",
        )


def _words(deployment: Deployment) -> str:
    log = "the embedded log"
    if deployment.kafka is not None:
        prefix = deployment.kafka.prefix
        log = f"Kafka under the prefix {prefix}" if prefix else "Kafka"
    url = deployment.tables.url
    return f"{log} and its tables in {url or 'the data directory'}"


def _way(began: Deployment, chosen: Deployment) -> str:
    if began.kafka is None and chosen.kafka is not None:
        return "`headrace promote` takes a pipeline over to Kafka, with its tables."
    if began.kafka is not None and chosen.kafka is None:
        return "There is no way back from Kafka: begin with another data directory."
    return "Give what it was begun with, or begin with another data directory."
