"""`python -m headrace.testing.services`: the stand-ins by themselves, until told to stop."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import click

from headrace.model.errors import HeadraceError
from headrace.testing.services import gbif
from headrace.testing.services.server import services
from headrace.testing.services.stand_in import RECORDS


@click.command()
@click.option("--port", type=int, default=0, help="Port of the loopback interface; 0: a free one.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of recordings; without it records are generated.",
)
@click.option("--records", type=int, default=RECORDS, help="Generated records a service.")
@click.option("--seed", type=int, default=0, help="What the generated records depend on.")
@click.option("--wall", type=int, default=gbif.WALL, help="Most that GBIF's pages reach.")
def main(port: int, data: Path | None, records: int, seed: int, wall: int) -> None:
    """Serve stand-ins of GBIF, OBIS and iDigBio. The first line says where."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        with services(data=data, records=records, seed=seed, wall=wall, port=port) as running:
            click.echo(running.url)
            stop.wait()
    except (HeadraceError, OSError) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
