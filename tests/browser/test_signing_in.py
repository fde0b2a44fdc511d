"""A pipeline that asks for tokens, as a person meets it."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_example import Run, headrace

PIPELINE = Path(__file__).with_name("shop.py")


@pytest.fixture(scope="module")
def guarded(browser, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOP_TOKENS", "yes")
        data = tmp_path_factory.mktemp("guarded") / "data"
        with Run(PIPELINE, data) as run:
            yield run


def token(guarded, *scopes):
    named = [word for scope in scopes for word in ("--scope", scope)]
    printed = headrace("tokens", "create", "--data", guarded.data, *named)
    return next(word for word in printed.split() if word.startswith("hr_"))


def test_signing_in_and_out(guarded, visit):
    visitor = visit(guarded.url, "tokens")
    visitor.expected = ("401", "403")
    page = visitor.to("/_/topics?")
    assert "/_/sign-in" in page.url
    visitor.picture("sign-in")
    page.get_by_label("Token").fill("hr_nonsense")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("alert").wait_for()
    visitor.picture("refused")
    page.get_by_label("Token").fill(token(guarded, "read"))
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/_/topics*")
    for path in ("/", "/_/tables", "/_/health", "/docs"):
        visitor.to(path)
        assert page.locator("nav").is_visible(), path
    # A session has its token's scopes: this one may read, and nothing else.
    visitor.to("/_/sql")
    page.get_by_role("button", name="Run").click()
    page.locator("#answer .fault", has_text="sql").wait_for()
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/_/sign-in")
    assert "/_/sign-in" in visitor.to("/_/tables").url


def test_who_may_run_sql_may_here(guarded, visit):
    visitor = visit(guarded.url, "tokens")
    page = visitor.to("/_/sql")
    page.get_by_label("Token").fill(token(guarded, "read", "sql"))
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/_/sql")
    page.locator("#statement").fill("SELECT 42 AS answer")
    page.get_by_role("button", name="Run").click()
    page.locator("#answer td", has_text="42").wait_for()
    cookies = visitor.context.cookies()
    assert [c["name"] for c in cookies] == ["headrace-session"]
    assert cookies[0]["httpOnly"]
    assert cookies[0]["sameSite"] == "Strict"
