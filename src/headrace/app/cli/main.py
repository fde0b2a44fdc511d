"""Finds a verb, runs it, and makes of what goes wrong a message and an exit status.

Status 0: done. 1: the user's fault, fix it and try again. 2: the system's.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click
from click.shell_completion import CompletionItem

from headrace.app.cli.printing import print_error
from headrace.model.errors import HeadraceError, Invalid

VERBS: dict[str, str] = {
    "init": "headrace.app.cli.init:init",
    "check": "headrace.app.cli.check:check",
    "plan": "headrace.app.cli.check:plan",
    "test": "headrace.testing.command:test",
    "run": "headrace.app.cli.run:run",
    "demo": "headrace.app.cli.run:demo",
    "status": "headrace.app.cli.status:status",
    "doctor": "headrace.app.cli.doctor:doctor",
    "topics": "headrace.app.cli.topics:topics",
    "produce": "headrace.app.cli.produce:produce",
    "tail": "headrace.app.cli.tail:tail",
    "tables": "headrace.app.cli.tables:tables",
    "sql": "headrace.app.cli.sql:sql",
    "sources": "headrace.app.cli.sources:sources",
    "reconcile": "headrace.app.cli.reconcile:reconcile",
    "dlq": "headrace.app.cli.dlq:dlq",
    "tokens": "headrace.app.cli.tokens:tokens",
    "report": "headrace.app.cli.report:report",
    "load": "headrace.app.cli.load:load",
    "outputs": "headrace.app.cli.outputs:outputs",
    "backup": "headrace.app.cli.backup:backup",
    "restore": "headrace.app.cli.backup:restore",
    "promote": "headrace.app.cli.promote:promote",
    "cluster": "headrace.app.cli.cluster:cluster",
    "dev-cert": "headrace.app.cli.dev_cert:dev_cert",
    "completion": "headrace.app.cli.completion:completion",
}
"""Verb → `module:command`, in the order of the help. A verb's module is loaded when it is used, so
each holds in memory, and waits for, only what it needs."""

USER, SYSTEM = 1, 2
INTERRUPTED = 130
"""128 + SIGINT, as shells count."""


class Verbs(click.Group):
    """A group whose commands are loaded by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the verbs in the order of the help."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Load a verb; None if there is none."""
        if cmd_name not in VERBS:
            return None
        module, _, name = VERBS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the verbs that begin so; click would load them all for their help."""
        verbs = [CompletionItem(verb) for verb in VERBS if verb.startswith(incomplete)]
        return [*verbs, *click.Command.shell_complete(self, ctx, incomplete)]


@click.command(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="headrace")
def cli() -> None:
    """Events and records over HTTP, into a durable log, into tables and live counts by plain SQL.

    Exit status: 0 done, 1 the user's fault, 2 the system's.
    """


def main() -> None:
    """Run the command line of this process."""
    sys.exit(call(sys.argv[1:]))


def call(arguments: Sequence[str]) -> int:
    """Run a command line; return its exit status."""
    try:
        result = cli.main(args=list(arguments), prog_name="headrace", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as usage:
        usage.show()
        return USER
    except click.ClickException as usage:
        print_error(
            usage.format_message(), "`headrace --help` and `headrace VERB --help` tell more"
        )
        return USER
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except HeadraceError as error:
        print_error(error.message, error.hint)
        return USER if isinstance(error, Invalid) else SYSTEM
    except BrokenPipeError:
        # Whoever read our output has gone, as `head` does; closing it again would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if _was_interrupted(error):
            return INTERRUPTED
        if os.environ.get("HEADRACE_TRACEBACK"):
            raise
        what = f"{type(error).__name__}: {error}"
        print_error(what, "HEADRACE_TRACEBACK=1 shows where; this may be a bug worth reporting")
        return SYSTEM
    return result if isinstance(result, int) else 0


def _was_interrupted(error: Exception) -> bool:
    """Return whether DuckDB, which takes Ctrl-C for itself while it runs, was stopped by it."""
    return isinstance(error, RuntimeError) and str(error) == "Query interrupted"
