"""`headrace tokens`: who may do what over HTTP, made, listed and revoked by the owner.

Works on the data directory, so it needs no token: whoever may write there may do everything.
"""

from __future__ import annotations

import click

from headrace.app.cli.options import data_option, json_option
from headrace.app.cli.printing import console, print_json, print_rows
from headrace.app.data_directory import reading_log, require, writing_log
from headrace.control import tokens as kept
from headrace.define.duration import seconds
from headrace.model.clock import SystemClock
from headrace.model.layout import Layout

SHOWN = ("id", "kind", "name", "state", "scopes", "expires_at", "origins")


@click.group()
def tokens() -> None:
    """Tokens: make one, list them, revoke one."""


@tokens.command()
@click.option("--scope", "scopes", multiple=True, required=True,
              help="append:TOPIC, append:*, read, sql or admin; may be given again.")  # fmt: skip
@click.option("--expires", help='When it ends by itself, such as "7 days"; never without.')
@click.option("--name", default="", help="What it is for.")
@click.option("--origin", "origins", multiple=True,
              help="Make a key for pages of this origin: it may only append.")  # fmt: skip
@data_option
@json_option
def create(
    scopes: tuple[str, ...],
    expires: str | None,
    name: str,
    origins: tuple[str, ...],
    layout: Layout,
    *,
    as_json: bool,
) -> None:
    """Make a token and print it, once: what is kept cannot be turned back into it.

    Works before the first run, while one is alive, and after it.
    """
    clock = SystemClock()
    wanted = kept.Wanted(
        scopes=scopes,
        name=name,
        kind="browser" if origins else "api",
        lifetime_s=None if expires is None else seconds(expires),
        origins=origins,
    )
    kept.check_wanted(wanted)
    with writing_log(layout, clock) as log:
        made = kept.create(log, clock, wanted)
    if as_json:
        print_json({**kept.told(made.token, clock.now_us()), "token": made.text})
        return
    click.echo(made.text)
    click.echo(f"headrace: keep it now, it is not shown again; its id is {made.token.id}", err=True)


@tokens.command("list")
@data_option
@json_option
def list_tokens(layout: Layout, *, as_json: bool) -> None:
    """List tokens, newest first; those that ended are listed for a day."""
    now_us = SystemClock().now_us()
    with reading_log(layout) as log:
        found = [kept.told(token, now_us) for token in kept.listed(log)]
    if as_json:
        print_json(found)
        return
    rows = [{**t, "scopes": _joined(t["scopes"]), "origins": _joined(t["origins"])} for t in found]
    print_rows(SHOWN, [[row[name] for name in SHOWN] for row in rows])


@tokens.command()
@click.argument("token_id")
@data_option
@json_option
def revoke(token_id: str, layout: Layout, *, as_json: bool) -> None:
    """End a token for good, and those that it made over HTTP; a run refuses it within 2 seconds."""
    require(layout)
    clock = SystemClock()
    with writing_log(layout, clock) as log:
        token = kept.revoke(log, clock, token_id)
    if as_json:
        print_json(kept.told(token, clock.now_us()))
    else:
        console().print(f"{token.id} is revoked")


def _joined(texts: object) -> str:
    return " ".join(texts) if isinstance(texts, list) else ""
