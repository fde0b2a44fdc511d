from __future__ import annotations

import gzip
import json
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.model.clock import ManualClock, SystemClock
from headrace.model.errors import Invalid
from headrace.model.options import declared, read_options
from headrace.model.source import BYTES_MAX, RECORDS_MAX
from headrace.sources import documents as documents_module
from headrace.sources.documents import documents
from headrace.sources.replay import Replay, ReplayOptions
from headrace.testing.source_suite import GUARANTEES

RECORDS = [b'{"n":%d,"at":%d}' % (n, (n * 7) % 50) for n in range(50)]


def replay(path, clock=None, **options):
    return Replay(ReplayOptions(path=str(path), **options), clock or ManualClock())


def values(source, cursor=None):
    return [r.value for page in source.open(cursor) for r in page.records]


def lines(folder, name="r.ndjson", records=RECORDS):
    path = folder / name
    path.write_bytes(b"\n".join(records) + b"\n")
    return path


# --- the contract


def many_lines(folder):
    path = lines(folder, records=[b'{"n":%d}' % n for n in range(2 * RECORDS_MAX + 5)])
    return lambda: replay(path)


def one_at_a_time(folder):
    path = lines(folder)
    return lambda: replay(path, delay_s=0.1)


def sorted_at_a_pace(folder):
    path = lines(folder)
    return lambda: replay(path, order_by="at", speed=10.0)


def several_files(folder):
    lines(folder, "a.ndjson", RECORDS[:20])
    (folder / "b.json").write_bytes(b"[" + b",".join(RECORDS[20:30]) + b"]")
    (folder / "c.json").write_bytes(b"")
    (folder / "d.ndjson.gz").write_bytes(gzip.compress(b"\n".join(RECORDS[30:])))
    return lambda: replay(folder)


def pages_of_an_api(folder):
    path = folder / "pages.ndjson"
    path.write_text(
        "\n".join(json.dumps({"results": [{"n": 10 * p + i} for i in range(4)]}) for p in range(6))
    )
    return lambda: replay(path, records="results", delay_s=1.0)


@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda g: g.__name__)
@pytest.mark.parametrize(
    "make", [many_lines, one_at_a_time, sorted_at_a_pace, several_files, pages_of_an_api]
)
def test_replay_keeps(guarantee, make, tmp_path):
    guarantee(make(tmp_path))


# --- what a file may hold


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        b"\n".join(RECORDS),
        b"\r\n".join(RECORDS) + b"\r\n",
        b"\n\n".join(RECORDS),
        b"\xef\xbb\xbf" + b"\n".join(RECORDS),
        b"[" + b",".join(RECORDS) + b"]",
        b" \n\t[\n  " + b" ,\n  ".join(RECORDS) + b"\n]\n\n",
    ],
    ids=["lines", "crlf", "blank lines", "byte order mark", "array", "pretty array"],
)
def test_every_shape_gives_the_same_records(text, packed, tmp_path):
    path = tmp_path / "named.txt"
    path.write_bytes(gzip.compress(text) if packed else text)
    assert values(replay(path)) == RECORDS


def test_bad_lines_are_passed_on_as_they_are(tmp_path):
    bad = [b'{"n":1}', b"{", b"\xff\xfe", b'{"n":NaN}', b"nonsense", b"[" * 10_000, b'{"n":2}']
    path = lines(tmp_path, records=bad)
    assert values(replay(path, order_by="n", id="n", key="n", records="inside")) == bad


def test_a_broken_element_does_not_touch_its_neighbours(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"n":1}, nonsense, {"n":"a,]}\\"b"}, [1,[2]], 5]\n{"n":6}\n{"n":7}')
    assert values(replay(path)) == [
        b'{"n":1}',
        b"nonsense",
        b'{"n":"a,]}\\"b"}',
        b"[1,[2]]",
        b"5",
        b'{"n":6}',
        b'{"n":7}',
    ]


def test_an_array_cut_short_gives_what_is_there(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"n":1},{"n":"tw')
    assert values(replay(path)) == [b'{"n":1}', b'{"n":"tw']


def test_records_inside_documents(tmp_path):
    path = tmp_path / "r.ndjson"
    path.write_bytes(
        b'{"seen": 2, "item": {"data": {"a":  1.50}}}\n'
        b'{"seen": 1, "item": {"data": [{"b":1}, {"b":2}]}}\n'
        b'{"seen": 3, "item": {}}\n'
    )
    taken = values(replay(path, records="item.data", order_by="seen"))
    assert taken == [b'{"b":1}', b'{"b":2}', b'{"a":  1.50}', b'{"seen": 3, "item": {}}']


def test_names_with_dots_are_reached_by_pointer(tmp_path):
    path = tmp_path / "r.ndjson"
    path.write_bytes(b'{"a.b": {"c/d": {"x": 1}}}\n')
    assert values(replay(path, records="/a.b/c~1d")) == [b'{"x": 1}']


def test_ids_and_keys(tmp_path):
    path = tmp_path / "r.ndjson"
    path.write_bytes(
        b'{"id": "\\u00e9", "host": "a"}\n'
        b'{"id": 18446744073709551617, "host": 7}\n'
        b'{"id": null}\n{"id": true}\n'
    )
    (page, _) = replay(path, id="id", key="host").open(None)
    assert [(r.id, r.key) for r in page.records] == [
        ("é", b"a"),
        ("18446744073709551617", b"7"),
        (None, None),
        (None, None),
    ]


@pytest.mark.parametrize("cut", [20, 200])
def test_a_damaged_gzip_gives_what_came_before_and_then_says_so(cut, tmp_path):
    path = tmp_path / "r.gz"
    records = [b'{"n":"%064x"}' % (n * 2**200 // 7**9) for n in range(5000)]
    path.write_bytes(gzip.compress(b"\n".join(records))[:-cut])
    pages = replay(path).open(None)
    taken = [r.value for r in next(pages).records]
    assert taken == records[: len(taken)]
    assert len(taken) > 4000
    with pytest.raises(Invalid, match="cannot be unpacked"):
        next(pages)


def test_a_document_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(documents_module, "DOCUMENT_BYTES_MAX", 1000)
    monkeypatch.setattr(documents_module, "_CHUNK_BYTES", 100)
    for name, text in (("line", b'{"a":"' + b"x" * 5000), ("array", b'["' + b"x" * 5000)):
        path = tmp_path / name
        path.write_bytes(text)
        with pytest.raises(Invalid, match="document of more than"):
            list(documents(path))


def test_a_page_of_large_records_is_bounded(tmp_path):
    path = lines(tmp_path, records=[b'"' + b"x" * (BYTES_MAX // 3) + b'"'] * 7)
    sizes = [len(p.records) for p in replay(path).open(None)]
    assert sizes == [2, 2, 2, 1, 0]


element = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(
    elements=st.lists(element),
    chunk=st.integers(1, 40),
    indent=st.sampled_from([None, 1]),
    text_is_ascii=st.booleans(),
)
def test_arrays_are_cut_where_a_parser_would(
    elements, chunk, indent, text_is_ascii, tmp_path_factory
):
    path = tmp_path_factory.mktemp("array") / "a.json"
    text = json.dumps(elements, indent=indent, ensure_ascii=text_is_ascii)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    before = documents_module._CHUNK_BYTES
    documents_module._CHUNK_BYTES = chunk
    try:
        found = list(documents(path))
    finally:
        documents_module._CHUNK_BYTES = before
    assert [json.loads(d.decode("utf-8", "surrogatepass")) for d in found] == elements


# --- order and pace


def test_order_by_sorts_and_keeps_equal_times_in_order(tmp_path):
    path = lines(tmp_path, records=[b'{"t":2,"n":1}', b'{"t":1,"n":2}', b'{"t":2,"n":3}'])
    assert values(replay(path, order_by="t")) == [
        b'{"t":1,"n":2}',
        b'{"t":2,"n":1}',
        b'{"t":2,"n":3}',
    ]


def test_order_by_reads_the_usual_times(tmp_path):
    times = [
        b"1482582523",
        b'"2016-12-24T13:28:44.297+0100"',
        b'"2016-12-24 12:28:45"',
        b'"2016-12-24T12:28:46Z"',
        b'"2016-12-25"',
    ]
    records = [b'{"t":%s}' % t for t in times]
    path = lines(tmp_path, records=records[::-1])
    assert values(replay(path, order_by="t")) == records


def test_a_record_without_a_time_stays_behind_the_one_before_it(tmp_path):
    records = [b'{"n":0}', b'{"t":5}', b'{"n":1}', b'{"t":"?"}', b'{"t":1}', b'{"n":2}']
    path = lines(tmp_path, records=records)
    order = [0, 4, 5, 1, 2, 3]
    assert values(replay(path, order_by="t")) == [records[i] for i in order]


def test_a_document_says_when_its_records_were_seen(tmp_path):
    records = [
        b'{"inside":[{"n":1},{"n":2}],"seen":"2020-01-01T00:00:00.5Z"}',
        b'{"inside":{"n":3},"seen":"?"}',
        b'{"inside":{"n":4}}',
    ]
    source = replay(lines(tmp_path, records=records), records="inside", seen_at="seen")
    seen = [r.seen_at_us for page in source.open(None) for r in page.records]
    assert seen == [1_577_836_800_500_000] * 2 + [None] * 2
    in_ms = replay(lines(tmp_path, records=[b'{"t":7}']), seen_at="t", order_unit="ms")
    assert [r.seen_at_us for page in in_ms.open(None) for r in page.records] == [7_000]


def test_a_delay_is_kept_between_records(tmp_path):
    clock = ManualClock()
    at = [
        (clock.monotonic_s(), len(page.records))
        for page in replay(lines(tmp_path), clock, delay_s=0.1).open(None)
    ]
    assert at[:3] == [(0.0, 1), (0.1, 1), pytest.approx((0.2, 1))]
    assert at[-1] == (pytest.approx(4.9), 0)


def test_a_reader_that_was_slow_catches_up(tmp_path):
    clock = ManualClock()
    pages = replay(lines(tmp_path), clock, delay_s=0.1).open(None)
    next(pages)
    clock.advance(1.05)
    assert len(next(pages).records) == 10
    assert clock.monotonic_s() == pytest.approx(1.05)


def test_speed_is_relative_to_the_records_times(tmp_path):
    clock = ManualClock()
    path = lines(tmp_path, records=[b'{"n":0}', b'{"t":0}', b'{"t":60}', b'{"t":60}', b'{"t":90}'])
    pages = replay(path, clock, order_by="t", speed=60.0).open(None)
    at = [(clock.monotonic_s(), len(page.records)) for page in pages]
    assert at == [(0.0, 2), (1.0, 2), (1.5, 1), (1.5, 0)]


def test_closing_ends_a_wait(tmp_path):
    source = replay(lines(tmp_path), SystemClock(), delay_s=3600)
    pages = source.open(None)
    next(pages)
    threading.Timer(0.05, source.close).start()
    assert list(pages) == []


# --- going on


def pause_after(path, n, **options):
    pages = replay(path, delay_s=1, **options).open(None)
    return [next(pages) for _ in range(n)][-1].cursor


def test_a_file_that_grew_at_its_end_goes_on(tmp_path):
    path = lines(tmp_path)
    cursor = list(replay(path).open(None))[-1].cursor
    with path.open("ab") as file:
        file.write(b'{"n":"new"}\n')
    assert values(replay(path), cursor) == [b'{"n":"new"}']


@pytest.mark.parametrize("change", [RECORDS[1:], RECORDS[:3], [b"{}", *RECORDS[1:]], []])
def test_a_file_that_changed_under_the_cursor_is_refused(change, tmp_path):
    path = lines(tmp_path)
    cursor = pause_after(path, 5)
    path.write_bytes(b"\n".join(change))
    with pytest.raises(Invalid, match="has changed") as refused:
        values(replay(path), cursor)
    assert refused.value.code == "file_changed"
    assert "another name" in refused.value.hint


def test_a_sorted_file_with_a_new_first_record_is_refused(tmp_path):
    path = lines(tmp_path)
    cursor = pause_after(path, 5, order_by="at")
    lines(tmp_path, records=[*RECORDS, b'{"at":-1}'])
    with pytest.raises(Invalid, match="has changed"):
        values(replay(path, order_by="at"), cursor)


def test_a_file_that_is_gone_is_refused(tmp_path):
    path = lines(tmp_path)
    lines(tmp_path, "z.ndjson")
    cursor = pause_after(tmp_path, 5)
    path.unlink()
    with pytest.raises(Invalid, match="is gone"):
        values(replay(tmp_path), cursor)


def test_files_added_later_are_read(tmp_path):
    lines(tmp_path, "a.ndjson")
    cursor = list(replay(tmp_path).open(None))[-1].cursor
    lines(tmp_path, "b.ndjson", [b"{}"])
    assert values(replay(tmp_path), cursor) == [b"{}"]


def test_globs_reach_into_folders(tmp_path):
    (tmp_path / "x").mkdir()
    lines(tmp_path / "x", "r.log", [b'{"n":1}'])
    lines(tmp_path, "r.log", [b'{"n":0}'])
    assert values(replay(tmp_path / "**" / "*.log")) == [b'{"n":0}', b'{"n":1}']


@pytest.mark.parametrize("path", ["missing.json", "*.none", "."])
def test_nothing_to_replay_is_refused(path, tmp_path):
    with pytest.raises(Invalid, match="nothing to replay"):
        values(replay(tmp_path / path))


def test_a_foreign_cursor_is_refused(tmp_path):
    with pytest.raises(Invalid, match="no cursor"):
        values(replay(lines(tmp_path)), b'{"page": 3}')


# --- options


def test_every_option_is_declared_in_full():
    for about in declared(ReplayOptions):
        assert about.doc.endswith("."), about.name
        assert about.example is not None, about.name
        if about.type in ("int", "float"):
            assert about.unit, about.name
            assert about.at_least is not None, about.name


def test_all_faults_of_options_are_told_at_once():
    with pytest.raises(Invalid) as refused:
        read_options(ReplayOptions, {"pth": "x", "delay_s": -1, "speed": "fast"}, 'source "a"')
    message = refused.value.message
    assert 'source "a"' in message
    assert "pth is unknown (did you mean path?)" in message
    assert "path is missing" in message
    assert "delay_s must be at least 0, not -1" in message
    assert "speed must be float, not 'fast'" in message
    assert "path='recordings" in refused.value.hint


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"delay_s": 1, "speed": 2, "order_by": "t"}, "exclude each other"),
        ({"speed": 2}, "needs order_by"),
        ({"order_unit": "h"}, "order_unit must be"),
        ({"delay_s": float("nan")}, "finite"),
        ({"delay_s": True}, "must be float"),
    ],
)
def test_options_that_do_not_go_together_are_refused(given, message):
    with pytest.raises(Invalid, match=message):
        read_options(ReplayOptions, {"path": "x", **given}, 'source "a"')


def test_a_whole_number_stands_for_a_float():
    assert read_options(ReplayOptions, {"path": "x", "delay_s": 1}, "s").delay_s == 1.0
