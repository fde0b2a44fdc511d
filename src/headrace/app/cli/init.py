"""`headrace init`: a pipeline file to begin with, which runs as it is."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import click

from headrace.app.cli.printing import console
from headrace.model.errors import Invalid

TEMPLATES = ("minimal", "game")
"""Names of the files in `app/templates`."""


@click.command()
@click.argument("template", type=click.Choice(TEMPLATES), default="game")
@click.option("--to", "target", type=click.Path(path_type=Path, dir_okay=False),
              default="pipeline.py", show_default=True, help="The file to write.")  # fmt: skip
def init(template: str, target: Path) -> None:
    """Write a pipeline file: `game` (events of a game, with counts) or `minimal` (one topic)."""
    text = template_text(template)
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        msg = f"{target} exists already"
        raise Invalid(msg, hint="name another file with --to") from error
    except OSError as error:
        msg = f"{target} cannot be written: {error.strerror}"
        raise Invalid(msg, hint="name another file with --to") from error
    console().print(f"{target} is written. Next: headrace run {target}", soft_wrap=True)


def template_text(template: str) -> str:
    """Return the text of a template."""
    folder = resources.files("headrace.app") / "templates"
    return (folder / f"{template}.py").read_text(encoding="utf-8")
