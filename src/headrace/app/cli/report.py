"""`headrace report`: what a pipeline did, as one page; plots and samples as files, if wanted."""

from __future__ import annotations

from pathlib import Path

import click

from headrace.app.cli.options import data_option, json_option
from headrace.app.cli.printing import console, print_json, size_text
from headrace.app.report import plots
from headrace.app.report.known import known
from headrace.app.report.make import make
from headrace.app.report.page import html
from headrace.app.report.sar import write_csv
from headrace.control.files import replace
from headrace.define.duration import seconds
from headrace.model.clock import SystemClock
from headrace.model.errors import Invalid
from headrace.model.layout import Layout


@click.command()
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default="report.html",
              show_default=True, help="The page.")  # fmt: skip
@click.option(
    "--since", help="Only the last hour, or so: 1h, 30 minutes. Without, all that is kept."
)
@click.option("--png", type=click.Path(path_type=Path, file_okay=False),
              help="A folder for the plots as PNG files; asks for matplotlib.")  # fmt: skip
@click.option("--csv", type=click.Path(path_type=Path, dir_okay=False),
              help="A file for the samples as CSV, in the words of sar.")  # fmt: skip
@data_option
@json_option
def report(
    out: Path,
    since: str | None,
    png: Path | None,
    csv: Path | None,
    layout: Layout,
    *,
    as_json: bool,
) -> None:
    """Write what the pipeline did as one HTML page that needs nothing else, running or not.

    Throughput, freshness, windows and views, CPU and memory of each role and node, dead letters,
    sources, datasets to cite, and the accounts.
    """
    since_s = None if since is None else seconds(since)
    if png is not None:
        plots.require()
    try:
        with known(layout, SystemClock(), since_s) as found:
            made = make(found)
            replace(out, html(made).encode())
            files = [out] + (plots.write_plots(made, png) if png is not None else [])
            if csv is not None:
                write_csv(found, csv)
                files.append(csv)
    except OSError as error:
        raise Invalid(
            f"{error.filename} cannot be written: {error.strerror}", code="not_writable"
        ) from error
    if as_json:
        print_json({"files": [str(f) for f in files]})
        return
    for file in files:
        console().print(f"{file}  {size_text(file.stat().st_size)}", markup=False)
