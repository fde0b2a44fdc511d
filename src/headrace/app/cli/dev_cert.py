"""`headrace dev-cert`: a self-signed certificate, to try TLS on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from headrace.app import dev_certificate
from headrace.app.cli.options import json_option
from headrace.app.cli.printing import print_json
from headrace.model.clock import SystemClock

CERTIFICATE, KEY = "headrace-cert.pem", "headrace-key.pem"
DAYS = 90
DAYS_MAX = 397
"""Browsers take no certificate that is valid for longer than 398 days."""


@click.command("dev-cert")
@click.option("--to", "folder", type=click.Path(path_type=Path, file_okay=False, exists=True),
              default=".", show_default=True, help="The folder for both files.")  # fmt: skip
@click.option("--name", "names", multiple=True,
              help="A further name or address that it is for; may be given again.")  # fmt: skip
@click.option("--days", type=click.IntRange(1, DAYS_MAX), default=DAYS, show_default=True,
              help="How long it is valid.")  # fmt: skip
@click.option("--replace", is_flag=True, help="Renew files that are there.")
@json_option
def dev_cert(
    folder: Path, names: tuple[str, ...], days: int, *, replace: bool, as_json: bool
) -> None:
    """Make a self-signed certificate for localhost, 127.0.0.1 and ::1, and its private key.

    Clients have to be told to trust it, so it is for trials: a service that others use has one of
    an authority. A run that uses the files takes renewed ones by itself.
    """
    clock = SystemClock()
    serial = clock.secret(dev_certificate.SERIAL_BYTES)
    made = dev_certificate.make(names, days, clock.now_us(), serial)
    cert, key = folder / CERTIFICATE, folder / KEY
    dev_certificate.write(made, cert, key, replace=replace)
    if as_json:
        told = {"certificate": str(cert), "key": str(key), "ends": f"{made.ends:%Y-%m-%d}"}
        print_json(told)
        return
    click.echo(f"{cert} and {key}, until {made.ends:%Y-%m-%d}")
    click.echo(f"  headrace run PIPELINE.py --tls-cert {cert} --tls-key {key}")
    click.echo(f"  curl --cacert {cert} https://localhost:8080/healthz")
