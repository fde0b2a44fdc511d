"""`headrace init`: a pipeline file to begin with, which runs as it is."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import click

from headrace.app.cli.printing import console
from headrace.model.errors import Invalid

TEMPLATES = ("minimal", "game", "biodiversity", "factory")
"""Names of the files in `app/templates`."""
BESIDE = {"factory": ("plant/metrics.ndjson", "plant/workorder.ndjson")}
"""Template → what it reads, written beside it."""


@click.command()
@click.argument("template", type=click.Choice(TEMPLATES), default="game")
@click.option("--to", "target", type=click.Path(path_type=Path, dir_okay=False),
              default="pipeline.py", show_default=True, help="The file to write.")  # fmt: skip
def init(template: str, target: Path) -> None:
    """Write a pipeline file that runs as it is.

    `game` counts events, `minimal` has one topic, `biodiversity` follows a species in GBIF, OBIS
    and iDigBio, `factory` taps two streams of a plant, which come from files written beside it.
    """
    texts = {target: template_text(f"{template}.py")}
    texts |= {target.parent / name: template_text(name) for name in BESIDE.get(template, ())}
    if taken := [path for path in texts if path.exists()]:
        msg = f"{taken[0]} exists already"
        raise Invalid(msg, hint="name another file with --to, in another folder perhaps")
    for path, text in texts.items():
        try:
            path.parent.mkdir(exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            msg = f"{path} cannot be written: {error.strerror}"
            raise Invalid(msg, hint="name another file with --to") from error
    console().print(f"{target} is written. Next: headrace run {target}", soft_wrap=True)


def template_text(name: str) -> str:
    """Return the text of a template, `game.py`, or of a file beside one."""
    return (resources.files("headrace.app") / "templates" / name).read_text(encoding="utf-8")
