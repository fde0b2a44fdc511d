"""Every page and every button, as a person meets them."""

from __future__ import annotations

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import psutil
import pytest
from run_example import Run, until

PIPELINE = Path(__file__).with_name("shop.py")
PAGES = {
    "overview": "/",
    "topics": "/_/topics",
    "topic": "/_/topics/orders",
    "tables": "/_/tables",
    "table": "/_/tables/sold",
    "view": "/_/views/per_minute",
    "letters": "/_/dead-letters",
    "sources": "/_/sources",
    "health": "/_/health",
    "sql": "/_/sql",
    "http": "/docs",
}
SEEN_S = 1.0
"""A count is to change on the page within this of the POST."""


@pytest.fixture(scope="module")
def shop(browser, tmp_path_factory):
    with Run(PIPELINE, tmp_path_factory.mktemp("shop") / "data") as run:
        yield run


def post(shop, records, topic="orders"):
    answer = httpx2.post(f"{shop.url}/v1/topics/{topic}", json=records)
    assert answer.status_code == 200, answer.text
    return answer.json()


def counts(shop):
    rows = httpx2.get(f"{shop.url}/v1/views/by_item").json()["rows"]
    return {row["item"]: row["n"] for row in rows}


def order(item, **more):
    return {"customer": "Ada", "item": item, "pieces": 2, **more}


@pytest.fixture(scope="module")
def filled(shop):
    """The shop after some orders and two records that were none."""
    post(shop, [order(item) for item in ("sword", "knife", "shield") for _ in range(20)])
    post(shop, [{"item": "nothing"}, order("bow", pieces="many")])
    until(lambda: counts(shop), lambda found: found.get("shield", 0) >= 20)
    # Samples are kept every ten seconds; the page of health shows them.
    asked = {"sql": "SELECT count(*) AS n FROM samples"}
    until(
        lambda: httpx2.post(f"{shop.url}/v1/sql", json=asked).json()["rows"][0]["n"],
        lambda n: n > 0,
    )
    return shop


@pytest.mark.parametrize(
    ("name", "look"),
    [
        ("light", {"color_scheme": "light"}),
        ("dark", {"color_scheme": "dark"}),
        ("narrow", {"viewport": {"width": 360, "height": 740}}),
    ],
)
def test_every_page_is_sound_and_fits(filled, visit, name, look):
    visitor = visit(filled.url, name, **look)
    for page_name, path in PAGES.items():
        page = visitor.to(path)
        page.wait_for_timeout(300)
        visitor.picture(page_name)
        width = look.get("viewport", {}).get("width", 1200)
        assert visitor.width() <= width, f"{page_name} is wider than the window"
        assert page.locator("h1").first.is_visible()
        assert not page.locator("#stale").is_visible()


def test_it_is_there_at_once(filled, visit):
    page = visit(filled.url).to("/")
    painted_ms = page.evaluate(
        "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    )
    assert painted_ms < 1000


def test_navigation_leads_everywhere_by_keyboard_too(filled, visit):
    visitor = visit(filled.url)
    page = visitor.to("/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the content"
    for link in page.locator("nav li a").all_text_contents():
        page.locator("nav li a", has_text=re.compile(f"^{link}$")).focus()
        page.keyboard.press("Enter")
        page.wait_for_load_state()
        assert page.locator("nav a[aria-current=page]").text_content() == link


def test_a_count_changes_within_a_second_of_a_post(filled, visit):
    page = visit(filled.url).to("/")
    cell = page.locator("#view-by_item tr", has_text="sword").locator("td").nth(1)
    page.wait_for_timeout(500)
    for _ in range(3):
        wanted = str(counts(filled)["sword"] + 1)
        post(filled, [order("sword")])
        sent = time.monotonic()
        page.wait_for_function(
            "wanted => [...document.querySelectorAll('#view-by_item tr')]"
            ".some(r => r.cells[0].textContent === 'sword' && r.cells[1].textContent === wanted)",
            arg=wanted,
        )
        assert time.monotonic() - sent < SEEN_S
        assert cell.text_content() == wanted
        page.wait_for_timeout(700)


def test_charts_are_drawn(filled, visit):
    visitor = visit(filled.url)
    page = visitor.to("/")
    page.wait_for_selector("#throughput canvas")
    page.wait_for_selector("#chart-per_minute canvas")
    page = visitor.to("/_/views/per_minute")
    page.wait_for_selector("#chart canvas")
    page = visitor.to("/_/health")
    for chart in ("throughput", "freshness", "cpu", "memory"):
        page.wait_for_selector(f"#chart-{chart} canvas")
    for role in ("collect", "process", "serve"):
        assert page.locator("#roles tbody tr", has_text=role).count() == 1


def test_records_are_searched_and_opened(filled, visit):
    httpx2.post(
        f"{filled.url}/v1/topics/orders",
        json=order("halberd"),
        headers={"headrace-key": "customer-7"},
    )
    visitor = visit(filled.url)
    page = visitor.to("/_/topics/orders")
    page.get_by_label("Text").fill("HALBERD")
    page.get_by_role("button", name="Search").click()
    page.wait_for_url("**text=HALBERD**")
    found = page.locator("#records details")
    assert found.count() == 1
    found.locator("summary").click()
    assert json.loads(found.locator("pre").first.text_content()) == order("halberd")
    visitor.picture("record")
    page.get_by_label("Text").fill("")
    page.get_by_label("Key").fill("customer-7")
    page.get_by_role("button", name="Search").click()
    page.wait_for_url("**key=customer-7**")
    assert page.locator("#records details").count() == 1
    visitor.to("/_/topics/orders")
    first = page.locator("#records summary").first.text_content()
    page.locator("#older").click()
    page.wait_for_url("**before=**")
    assert page.locator("#records summary").first.text_content() != first
    page.get_by_label("Partition").select_option("1")
    page.get_by_role("button", name="Search").click()
    page.wait_for_url("**partition=1**")
    places = page.locator("#records .place").all_text_contents()
    assert places
    assert all(place.startswith("1/") for place in places)


def test_rows_are_filtered_ordered_paged_and_exported(filled, visit):
    visitor = visit(filled.url)
    page = visitor.to("/_/tables/sold")
    assert page.locator("#rows tbody tr").count() == 50
    page.locator("#next").click()
    page.wait_for_url("**cursor=**")
    assert 0 < page.locator("#rows tbody tr").count() <= 50
    page.get_by_label("Column").select_option("item")
    page.get_by_label("that").select_option("prefix")
    page.get_by_label("Value").fill("kni")
    page.get_by_label("Order").fill("-received_at")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**column=item**")
    items = page.locator("#rows tbody tr td:nth-child(4)").all_text_contents()
    assert set(items) == {"knife"}
    for form in ("csv", "json", "parquet", "arrow"):
        with page.expect_download() as download:
            page.get_by_role("link", name=form, exact=True).click()
        assert download.value.path().stat().st_size > 100
    visitor.expected = ("400",)
    page.get_by_label("Order").fill("nonsense")
    page.get_by_role("button", name="Show").click()
    page.get_by_role("alert").wait_for()
    assert "nonsense" in page.get_by_role("alert").text_content()
    visitor.picture("wrong-order")


def test_letters_are_replayed_and_discarded(filled, visit):
    visitor = visit(filled.url)
    page = visitor.to("/_/dead-letters")
    boxes = page.locator("input[name=letter]")
    assert boxes.count() == 2
    replay = page.get_by_role("button", name="Replay")
    assert replay.is_disabled()
    page.locator("tr", has_text="many").locator("input").check()
    replay.click()
    page.get_by_text("1 letter replayed").wait_for()
    # What was wrong with it still is: it is a letter again, of a second attempt.
    page.wait_for_function("() => document.querySelectorAll('input[name=letter]').length === 2")
    page.locator("tr", has_text="nothing").get_by_role("link").click()
    page.wait_for_url("**/_/dead-letters/*")
    assert '"item": "nothing"' in page.locator("pre").first.text_content()
    visitor.picture("letter")
    page.get_by_label("because").fill("a test of ours")
    page.get_by_role("button", name="Discard").click()
    page.get_by_text("1 letter discarded").wait_for()
    page.get_by_text("a test of ours").wait_for()
    visitor.to("/_/dead-letters")
    page.locator("[data-all]").check()
    page.get_by_text("1 chosen").wait_for()
    page.get_by_label("because").fill("cleared")
    page.get_by_role("button", name="Discard").click()
    page.get_by_text("1 letter discarded").wait_for()
    page.wait_for_function("() => !document.querySelector('input[name=letter]')")
    page.get_by_label("Status").select_option("all")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**status=all**")
    assert page.locator("#letters tbody tr").count() == 3


class Stream(BaseHTTPRequestHandler):
    """Ten orders of a minute ago, then nothing more until the server ends."""

    protocol_version = "HTTP/1.1"
    ended = threading.Event()

    def do_GET(self):
        self.send_response(200)
        self.send_header("content-type", "application/x-ndjson")
        self.send_header("connection", "close")
        self.end_headers()
        for n in range(10):
            self.wfile.write(json.dumps(order("lance", pieces=n)).encode() + b"\n")
        self.wfile.flush()
        self.ended.wait(60)

    def log_message(self, *_):
        pass


@pytest.fixture
def stream():
    with ThreadingHTTPServer(("127.0.0.1", 0), Stream) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/orders"
        Stream.ended.set()
        server.shutdown()


def test_sources_are_added_paused_resumed_and_removed(filled, visit, stream):
    visitor = visit(filled.url)
    page = visitor.to("/_/sources")
    form = page.locator("#add-source")
    form.locator("[name=name]").fill("lances")
    form.locator("[name=kind]").select_option("http_stream")
    form.locator("fieldset:visible [data-option=url]").fill("nonsense")
    visitor.expected = ("400",)
    form.get_by_role("button", name="Add").click()
    page.locator("#said.fault").wait_for()
    form.locator("fieldset:visible [data-option=url]").fill(stream)
    form.get_by_role("button", name="Add").click()
    page.get_by_text("lances added").wait_for()
    row = page.locator("#sources tr", has_text="lances")
    row.locator(".state.running").wait_for()
    until(lambda: counts(filled), lambda found: found.get("lance", 0) >= 10)
    visitor.picture("sources-running")
    row.get_by_role("button", name="Pause").click()
    row.locator(".state.paused").wait_for()
    row.get_by_role("button", name="Resume").click()
    row.get_by_role("button", name="Pause").wait_for()
    row.get_by_role("button", name="Remove").click()
    row.wait_for(state="detached")


def test_sql_is_run_remembered_inserted_and_exported(filled, visit):
    visitor = visit(filled.url)
    page = visitor.to("/_/sql")
    box = page.locator("#statement")
    box.fill("SELECT item, count(*) AS n FROM sold WHERE item = 'knife' GROUP BY item")
    box.press("Control+Enter")
    page.locator("#answer td", has_text="knife").wait_for()
    assert page.locator("#answer tbody tr").count() == 1
    visitor.picture("sql-answer")
    visitor.expected = ("400",)
    box.fill("SELECT nonsense FROM sold")
    page.get_by_role("button", name="Run").click()
    page.locator("#answer .fault").wait_for()
    assert "nonsense" in page.locator("#answer .fault").text_content()
    page.reload()
    page.locator("#history button", has_text="knife").click()
    assert "knife" in box.input_value()
    for form in ("csv", "json", "ndjson", "parquet", "arrow"):
        with page.expect_download() as download:
            page.locator("#format").select_option(form)
        assert download.value.suggested_filename == f"answer.{form}"
        assert download.value.path().stat().st_size > 10
    box.fill("SELECT * FROM ")
    page.locator("[data-insert=by_item]").click()
    assert box.input_value() == "SELECT * FROM by_item"
    page.get_by_role("button", name="Forget all").click()
    assert page.locator("#history button").count() == 0


def test_what_is_open_and_chosen_outlasts_a_change(filled, visit):
    page = visit(filled.url).to("/_/topics/orders")
    page.wait_for_timeout(500)
    opened = page.locator("#records details").first
    opened.locator("summary").click()
    place = opened.get_attribute("id")
    post(filled, [order("pike")])
    page.wait_for_function(
        "() => document.querySelector('#records details').textContent.includes('pike')"
    )
    assert page.locator(f"#{place}").get_attribute("open") is not None


def test_an_idle_page_costs_little(filled, visit, record_property):
    serve = next(
        child
        for child in psutil.Process(filled.process.pid).children(recursive=True)
        if "serve" in " ".join(child.cmdline())
    )
    page = visit(filled.url).to("/")
    page.wait_for_timeout(4_000)
    before, began = serve.cpu_times(), time.monotonic()
    page.wait_for_timeout(20_000)
    after, took_s = serve.cpu_times(), time.monotonic() - began
    share = (after.user + after.system - before.user - before.system) / took_s
    record_property("percent of a core", round(100 * share, 2))
    assert share < 0.05, share


def test_a_server_that_is_gone_is_said(browser, visit, tmp_path):
    with Run(PIPELINE, tmp_path / "data") as run:
        visitor = visit(run.url)
        page = visitor.to("/")
        page.wait_for_timeout(500)
        assert not page.locator("#stale").is_visible()
    visitor.expected = ("ERR_", "Failed to load", "EventSource")
    page.locator("#stale").wait_for(state="visible")
    visitor.picture("gone")
