import base64
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.collect.envelopes import open_body
from headrace.collect.exchange import HeaderList
from headrace.model.errors import Invalid

EVENT = {
    "specversion": "1.0",
    "id": "e-1",
    "source": "/game/1",
    "type": "purchase",
    "time": "2026-01-01T00:00:00Z",
    "partitionkey": "player 7",
    "count": 3,
    "data": {"event_type": "sword", "n": 12345678901234567890123},
}
NONE = HeaderList([])


def structured(**changes):
    event = {k: v for k, v in {**EVENT, **changes}.items() if v is not ...}
    return json.dumps(event).encode()


def test_the_three_modes_make_the_same_record():
    data = json.dumps(EVENT["data"]).encode()
    one = open_body("event", structured(), NONE, 10)
    batch = open_body("events", b"[" + structured() + b"]", NONE, 10)
    headers = [("content-type", "application/json")]
    headers += [(f"ce-{k}", str(v).replace(" ", "%20")) for k, v in EVENT.items() if k != "data"]
    binary = open_body("json", data, HeaderList(headers), 10)
    assert one == batch == binary
    assert one.values == [data]
    assert one.keys == [b"player 7"]
    assert json.loads(one.headers[0]) == {
        f"ce_{k}": str(v) for k, v in EVENT.items() if k != "data"
    }


def test_data_may_be_base64_or_missing():
    packed = structured(data=..., data_base64=base64.b64encode(b'{"a":1}').decode())
    assert open_body("event", packed, NONE, 10).values == [b'{"a":1}']
    assert open_body("event", structured(data=...), NONE, 10).values == [b"{}"]


def test_the_name_is_source_and_id():
    def name(**changes):
        return open_body("event", structured(**changes), NONE, 10).names[0]

    assert name() == name(type="other", data={})
    assert (
        len({name(), name(id="e-2"), name(source="/game/2"), name(source="/game", id="1/e-1")}) == 4
    )


@pytest.mark.parametrize(
    "envelope",
    [
        b"",
        b"[]",
        b"nonsense",
        b"{" * 5,
        structured(id=...),
        structured(id=""),
        structured(source=...),
        structured(type=None),
        structured(specversion="0.3"),
        structured(extension={"a": 1}),
        structured(data=..., data_base64="*"),
        structured(data=..., data_base64=5),
    ],
)
def test_a_bad_envelope_is_refused(envelope):
    with pytest.raises(Invalid) as refused:
        open_body("event", envelope, NONE, 10)
    assert refused.value.code == "malformed_cloudevent"


def test_one_bad_envelope_refuses_the_batch_and_says_which():
    body = b"[" + structured() + b"," + structured(id=...) + b"]"
    with pytest.raises(Invalid, match="Event 1 lacks id"):
        open_body("events", body, NONE, 10)
    with pytest.raises(Invalid):
        open_body("events", b"[]", NONE, 10)


def test_binary_lacks_attributes():
    with pytest.raises(Invalid, match="lacks id, source, type"):
        open_body("json", b"{}", HeaderList([("ce-specversion", "1.0")]), 10)


@given(
    st.lists(
        st.dictionaries(st.text(max_size=5), st.integers(), max_size=3), min_size=1, max_size=5
    )
)
def test_batches_keep_the_exact_bytes_of_each_data(datas):
    texts = [json.dumps(data, ensure_ascii=False).encode("utf-8", "replace") for data in datas]
    head = msgspec.json.encode({k: v for k, v in EVENT.items() if k != "data"})[:-1]
    body = b"[" + b" , ".join(head + b',"data": ' + text + b"}" for text in texts) + b"]"
    assert open_body("events", body, NONE, 10).values == texts
