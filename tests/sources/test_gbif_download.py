from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest

from headrace.model.clock import ManualClock
from headrace.model.errors import Invalid, Unavailable
from headrace.model.options import read_options
from headrace.model.source import Sweep
from headrace.sources import gbif_download
from headrace.sources.gbif import Gbif, GbifOptions
from headrace.sources.gbif_archive import read_core, read_rows
from headrace.sources.http import Answer, Network
from headrace.testing.services import services
from headrace.testing.source_suite import GUARANTEES, SWEEP_GUARANTEES

RECORDED = Path(__file__).resolve().parents[3] / "shared" / "data" / "gbif"
ROWS = 20
TWO_DAYS_S = 172_800.0
CLOCK = ManualClock()
NETWORK = Network(CLOCK, private=True)


@pytest.fixture(autouse=True)
def account(monkeypatch):
    monkeypatch.setenv("TEST_USER", "museum")
    monkeypatch.setenv("TEST_PASSWORD", "päss")
    monkeypatch.setattr(gbif_download, "ROWS_OF_A_PAGE", ROWS)


@pytest.fixture(scope="module")
def standing():
    with services(records={"gbif": 70}, clock=CLOCK) as running:
        yield running


@pytest.fixture
def changing():
    with services(records={"gbif": 70}, clock=CLOCK) as running:
        yield running


def gbif(url, **options):
    asked = {
        "contact": "x@example.org",
        "requests_per_s": 1000.0,
        "mode": "download",
        "interval_s": TWO_DAYS_S,
        "user_env": "TEST_USER",
        "password_env": "TEST_PASSWORD",
        **options,
    }
    return Gbif(GbifOptions(url=url, **asked), CLOCK, NETWORK)


def one_sweep(source, cursor=None):
    pages = []
    for page in source.open(cursor):
        pages.append(page)
        if page.sweep_done:
            break
    return pages


def records(pages):
    return {r.key.decode(): json.loads(r.value) for page in pages for r in page.records}


def requests(stand_in, method="POST"):
    return [e for e in stand_in.requests() if e.method == method and "/download" in e.target]


# --- the contract


@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda g: g.__name__)
def test_one_download_keeps(guarantee, standing):
    guarantee(lambda: gbif(standing.gbif, follow=False))


@pytest.mark.parametrize("guarantee", SWEEP_GUARANTEES, ids=lambda g: g.__name__)
def test_following_by_downloads_keeps(guarantee, changing):
    guarantee(lambda: gbif(changing.gbif, full_every=5))


# --- from the request to the rows


def test_a_download_gives_what_the_search_gives(changing):
    searched = Gbif(
        GbifOptions(url=changing.gbif, requests_per_s=1000.0, absences="include"), CLOCK, NETWORK
    )
    expected = records(one_sweep(searched))
    given = one_sweep(gbif(changing.gbif, absences="include"))
    assert given[-1].sweep.full
    got = records(given)
    assert got.keys() == expected.keys()
    same = {"kingdom", "taxonKey", "speciesKey", "year", "decimalLatitude", "license", "issues"}
    same |= {"datasetKey", "countryCode", "occurrenceStatus", "eventDate", "basisOfRecord"}
    for key, record in got.items():
        there = {k: v for k, v in expected[key].items() if k in same and v != []}
        assert {k: v for k, v in record.items() if k in same} == there


def test_a_predicate_asks_for_what_the_options_do(changing):
    next(gbif(changing.gbif, taxon="1", year="1990,2000", filter="checklistKey=c").open(None))
    (asked,) = requests(changing)
    body = json.loads(asked.body)
    assert body["creator"] == "museum"
    assert body["format"] == "DWCA"
    assert body["notificationAddresses"] == ["x@example.org"]
    assert body["checklistKey"] == "c"
    assert [p["type"] for p in body["predicate"]["predicates"]] == ["equals", "equals", "and"]


def test_the_key_is_durable_before_anything_else(changing):
    source = gbif(changing.gbif)
    first = next(source.open(None))
    assert first.records == ()
    rest = one_sweep(gbif(changing.gbif), first.cursor)
    assert len(requests(changing)) == 1
    assert rest[-1].sweep.full
    assert len(records(rest)) == gbif(changing.gbif).count()[0]


def test_it_is_asked_politely_whether_a_download_is_ready(changing):
    before_s = CLOCK.monotonic_s()
    one_sweep(gbif(changing.gbif, poll_s=90.0))
    asked = [e for e in requests(changing, "GET") if ".zip" not in e.target]
    assert len(asked) == 3
    assert CLOCK.monotonic_s() - before_s >= 2 * 90.0


def test_every_sweep_is_a_download_of_its_own(changing):
    source = gbif(changing.gbif)
    first = one_sweep(source)
    gone = min(records(first))
    changing.remove("gbif", [gone])
    second = one_sweep(source, first[-1].cursor)
    assert second[-1].sweep.full
    assert records(first).keys() - records(second).keys() == {gone}
    assert len(requests(changing)) == 2


def test_a_crash_before_the_key_is_durable_makes_no_second_download(changing):
    next(gbif(changing.gbif).open(None))
    given = one_sweep(gbif(changing.gbif))
    assert given[-1].sweep.full
    assert len({p.cursor for p in given}) > 1
    assert len({e.target for e in requests(changing, "GET") if ".zip" not in e.target}) == 1


def test_an_archive_from_before_the_sweep_says_nothing_of_what_is_gone(changing):
    before = one_sweep(gbif(changing.gbif))
    at_us = CLOCK.now_us()
    CLOCK.advance(3600)
    again = one_sweep(gbif(changing.gbif))
    assert before[-1].sweep.full
    assert not again[-1].sweep.full
    assert records(again) == records(before)
    assert all(r.seen_at_us <= at_us for p in again for r in p.records)


@pytest.mark.parametrize("follow", [True, False])
def test_downloads_are_not_asked_for_more_often_than_they_are_made(follow):
    options = {"mode": "download", "interval_s": 3600.0, "follow": follow}
    if not follow:
        read_options(GbifOptions, options, "source")
        return
    with pytest.raises(Invalid, match="the same download again for two days"):
        read_options(GbifOptions, options, "source")


def test_an_account_that_is_not_in_the_environment_is_asked_for(changing, monkeypatch):
    monkeypatch.delenv("TEST_PASSWORD")
    with pytest.raises(Invalid, match="TEST_PASSWORD is not set") as refused:
        next(gbif(changing.gbif).open(None))
    assert "päss" not in str(refused.value)


def test_too_many_downloads_are_waited_for(changing):
    for year in ("1999", "2000", "2001"):
        next(gbif(changing.gbif, year=year).open(None))
    with pytest.raises(Unavailable, match="too many simultaneous downloads"):
        next(gbif(changing.gbif).open(None))


def test_nothing_is_left_of_an_archive(changing, tmp_path):
    source = gbif(changing.gbif, folder=str(tmp_path))
    pages = source.open(None)
    next(pages)
    next(pages)
    assert list(tmp_path.iterdir())
    for page in pages:
        if page.sweep_done:
            break
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_came_in_part_is_fetched_again(changing):
    first = next(gbif(changing.gbif).open(None))
    changing.fail("truncated", service="gbif", path="/file/")
    source = gbif(changing.gbif)
    with pytest.raises(Unavailable):
        one_sweep(source, first.cursor)
    assert len(records(one_sweep(source, first.cursor))) == source.count()[0]


# --- a service that is told what to say


class Replies:
    """A service of downloads: statuses one after another, and an archive that knows of ranges."""

    def __init__(self, statuses=(), archive=b"", *, ranges=True):
        self.statuses = list(statuses)
        self.archive = archive
        self.ranges = ranges
        self.asked = []

    def post(self, path, body, headers):
        self.asked.append("post")
        return answer(b"0001-1")

    def get(self, path):
        self.asked.append("status")
        return answer(self.statuses.pop(0))

    def download(self, path, to, headers):
        self.asked.append(headers["range"])
        if not self.ranges:
            to.write_bytes(self.archive)
            return answer(b"")
        first, last = map(int, headers["range"].removeprefix("bytes=").split("-"))
        piece = self.archive[first : last + 1]
        to.write_bytes(piece)
        content_range = f"bytes {first}-{first + len(piece) - 1}/{len(self.archive)}"
        return answer(b"", 206, {"content-range": content_range})


def answer(body, status=200, headers=None):
    return Answer("http://gbif/download", status, headers or {}, body, 1)


def status(word, total=2, size=0):
    return json.dumps({"status": word, "totalRecords": total, "size": size}).encode()


def told(replies, **options):
    source = gbif("http://127.0.0.1:1", follow=False, **options)
    source._downloads._service = replies
    return source


def parts(source, position=None, started_at_us=0):
    sweep = Sweep(1, started_at_us, full=True)
    return list(source._downloads.parts(source._query, sweep, position))


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("size_is_told", [True, False])
def test_an_archive_is_fetched_in_pieces(ranges, size_is_told, monkeypatch):
    monkeypatch.setattr(gbif_download, "PIECE_BYTES", 100)
    held = archive("gbifID\tyear\n7\t1999\n8\t\n")
    size = len(held) if size_is_told else 0
    replies = Replies([status("SUCCEEDED", 2, size)], held, ranges=ranges)
    given = parts(told(replies))
    assert [r.value for p in given for r in p.records] == [
        b'{"key":"7","gbifID":"7","year":1999}',
        b'{"key":"8","gbifID":"8"}',
    ]
    pieces = [a for a in replies.asked if a.startswith("bytes=")]
    assert len(pieces) == (-(-len(held) // 100) if ranges else 1)
    assert given[-1].sound


@pytest.mark.parametrize("word", ["KILLED", "FAILED", "FILE_ERASED"])
def test_what_could_not_be_made_is_asked_for_anew_twice(word):
    position = None
    for _ in range(2):
        replies = Replies([status(word)])
        given = []
        with pytest.raises(Unavailable, match=word):
            given.extend(told(replies)._downloads.parts(QUERY, SWEEP, position))
        position = last_position(replies, position)
    with pytest.raises(Invalid, match=word):
        parts(told(Replies([status(word)])), position)


def last_position(replies, position):
    """Return where a reading that failed had come to."""
    again = told(Replies([status("KILLED")]))
    taken = []
    try:
        taken.extend(p.position for p in again._downloads.parts(QUERY, SWEEP, position))
    except Unavailable:
        return taken[-1]
    raise AssertionError("it did not fail")


QUERY = gbif("http://127.0.0.1:1")._query
SWEEP = Sweep(1, 0, full=True)


def test_fewer_rows_than_told_are_not_the_whole():
    held = archive("gbifID\n7\n")
    given = parts(told(Replies([status("SUCCEEDED", 2)], held)))
    assert not given[-1].sound


def test_an_answer_that_is_no_key_is_asked_again():
    replies = Replies()
    replies.post = lambda path, body, headers: answer(b"<html>maintenance</html>")
    with pytest.raises(Unavailable, match="no key"):
        parts(told(replies))


def test_a_folder_without_room_is_told_before():
    replies = Replies([status("SUCCEEDED", 2, size=1 << 62)])
    with pytest.raises(Invalid, match="has room for fewer"):
        parts(told(replies))


def test_recorded_statuses_are_gone_through():
    if not RECORDED.is_dir():
        pytest.skip("the recordings are not at ../shared/data/gbif")
    folder = RECORDED / "download"
    names = ("preparing", "running", "succeeded")
    replies = Replies([(folder / f"status-{n}-same-download.json").read_bytes() for n in names])
    source = told(replies)
    made = source._downloads._made("0026046-250827131500795")
    assert (made.status, made.total_records, made.size) == ("SUCCEEDED", 15_016, 2_592_799)
    assert replies.asked == ["status"] * 3
    replies.statuses = [(folder / "status-cancelled.json").read_bytes()]
    with pytest.raises(Invalid, match="is cancelled"):
        source._downloads._made("0068181-200221144449610")
    replies.post = lambda *a, **k: answer((folder / "request-201-key.txt").read_bytes(), 201)
    assert next(source._downloads.parts(source._query, SWEEP, None)).position == (
        b'{"key":"0028631-180508205500799","asked_at_us":1}'
    )


# --- archives


META = (
    '<archive xmlns="http://rs.tdwg.org/dwc/text/"><core encoding="UTF-8" {how} '
    'rowType="http://rs.tdwg.org/dwc/terms/Occurrence"><files><location>occurrence.txt</location>'
    '</files><id index="0"/>{fields}</core><extension><files><location>verbatim.txt</location>'
    '</files><coreid index="0"/><field index="1" term="http://x/year"/></extension></archive>'
)
TABS = 'fieldsTerminatedBy="\\t" linesTerminatedBy="\\n" fieldsEnclosedBy="" ignoreHeaderLines="1"'
QUOTED = 'fieldsTerminatedBy="," fieldsEnclosedBy=\'"\''
TERMS = "http://rs.tdwg.org/dwc/terms/"


def archive(text, how=TABS, names=None, extra=""):
    names = names or text.split("\n")[0].split("\t")
    fields = "".join(f'<field index="{n}" term="{TERMS}{name}"/>' for n, name in enumerate(names))
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("verbatim.txt", "gbifID\tyear\n7\twrong\n")
        zipped.writestr("meta.xml", META.format(how=how, fields=fields + extra))
        zipped.writestr("occurrence.txt", text)
    return held.getvalue()


def rows(tmp_path, held, skip=0):
    path = tmp_path / "a.zip"
    path.write_bytes(held)
    return [json.loads(row) for row in read_rows(path, skip)]


def test_values_are_what_the_search_has(tmp_path):
    names = "gbifID license issue year month decimalLatitude hasCoordinate recordedBy taxonKey"
    row = ["7", "CC_BY_4_0", "A;B", "1999", "2", "-1.50", "true", "0042", "6DBL"]
    text = "\t".join(names.split()) + "\n" + "\t".join(row) + "\n"
    assert rows(tmp_path, archive(text)) == [
        {
            "key": "7",
            "gbifID": "7",
            "license": "http://creativecommons.org/licenses/by/4.0/legalcode",
            "issues": ["A", "B"],
            "year": 1999,
            "month": 2,
            "decimalLatitude": -1.5,
            "hasCoordinate": True,
            "recordedBy": "0042",
            # Keys of the Catalogue of Life are words.
            "taxonKey": "6DBL",
        }
    ]


def test_quotes_are_only_quotes_if_the_archive_says_so(tmp_path):
    text = 'gbifID\tlocality\n7\t"Big" Hill\n8\tA "half\n9\tback\\slash\n'
    assert [r["locality"] for r in rows(tmp_path, archive(text))] == [
        '"Big" Hill',
        'A "half',
        "back\\slash",
    ]
    quoted = '7,"Hill, ""Big"""\n8,"two\nlines"\n'
    held = archive(quoted, QUOTED, ["gbifID", "locality"])
    assert [r["locality"] for r in rows(tmp_path, held)] == ['Hill, "Big"', "two\nlines"]


def test_what_the_description_says_of_every_row_is_in_each(tmp_path):
    extra = f'<field term="{TERMS}continent" default="EUROPE"/>'
    found = rows(tmp_path, archive("gbifID\n7\n8\n", extra=extra), skip=1)
    assert found == [{"key": "8", "gbifID": "8", "continent": "EUROPE"}]


def test_a_line_that_ends_oddly_is_one_line(tmp_path):
    text = "gbifID\tlocality\n7\tHill\u2028\x0bTop\r\n8\n\n9\tlast"
    found = rows(tmp_path, archive(text))
    assert [r["key"] for r in found] == ["7", "8", "9"]
    assert found[0]["locality"] == "Hill\u2028\x0bTop\r"


@pytest.mark.parametrize("part", ["meta.xml", "occurrence.txt"])
def test_an_archive_without_its_parts_is_refused(part, tmp_path):
    held = io.BytesIO()
    whole = zipfile.ZipFile(io.BytesIO(archive("gbifID\n7\n")))
    with zipfile.ZipFile(held, "w") as zipped:
        for name in whole.namelist():
            if name != part:
                zipped.writestr(name, whole.read(name))
    with pytest.raises(Invalid, match=part):
        rows(tmp_path, held.getvalue())


@pytest.mark.parametrize("damage", ["cut", "flipped", "no zip"])
def test_a_damaged_archive_is_to_be_fetched_again(damage, tmp_path):
    held = archive("gbifID\n" + "".join(f"{n}\n" for n in range(5000)))
    at = held.index(b"occurrence.txt") + 2000
    broken = {
        "cut": held[: len(held) // 2],
        "flipped": held[:at] + bytes(8) + held[at + 8 :],
        "no zip": b"<html>",
    }
    with pytest.raises(Unavailable, match="damaged"):
        rows(tmp_path, broken[damage])


@pytest.mark.parametrize(
    "meta",
    [
        b"<html>",
        b"<archive xmlns='http://rs.tdwg.org/dwc/text/'/>",
        META.format(how=TABS, fields="").replace('<id index="0"/>', "").encode(),
    ],
)
def test_a_description_that_says_too_little_is_refused(meta):
    with pytest.raises(Invalid, match=r"meta\.xml"):
        read_core(meta)
