"""What comes from outside is shown, never obeyed by the terminal."""

import pytest

from headrace.app.cli.printing import cell, print_error
from headrace.app.cli.status import _print

CLIPBOARD = "\x1b]52;c;cm0gLXJm\x07"


@pytest.mark.parametrize("value", [CLIPBOARD, CLIPBOARD.encode(), {"a": "\x9b2J"}, "\x9b2J\x7f"])
def test_no_value_reaches_the_terminal_as_a_command(value):
    shown = cell(value)
    assert not any(sign in shown for sign in "\x07\x1b\x7f\x9b")
    assert "\\x" in shown or "\\u" in shown


def test_lines_and_tabs_of_a_value_stay():
    assert cell("a\n\tb") == "a\n\tb"


def test_an_error_that_names_a_value_is_no_command_either(capsys):
    print_error(f"There is no {CLIPBOARD}", CLIPBOARD)
    assert "\x1b" not in capsys.readouterr().err


def test_brackets_in_an_alarm_are_text(capsys):
    _print(
        {
            "running": True,
            "pid": 1,
            "pipeline": "p",
            "epoch": 0,
            "waiting_for": "Expected [/b], got [bold]x",
            "at_risk": "",
            "alarm": "",
            "topics": {},
            "change_topics": {},
            "tables": {},
            "sources": {},
            "accounts_close": True,
        }
    )
    assert "Expected [/b], got [bold]x" in capsys.readouterr().out
