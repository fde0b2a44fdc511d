"""How a record gets its id: made of its client's own name for it, or counted up from a new one.

The id of a name has the layout of a UUIDv8 (RFC 9562, 5.8): 122 bits of blake2b over canonical
bytes. It is our own hash on purpose: it stays the same on every machine and in every version, so a
repeat after an upgrade still is a duplicate.
"""

from __future__ import annotations

import hashlib

import numpy as np

from headrace.model.batch import Batch
from headrace.model.clock import CHOSEN_BY_CLIENT, UUID_BYTES, Clock

NO_ID = b""
"""Stands in a batch for an id that `give_ids` has yet to give."""

_VARIANT = 0b10 << 62
_TAIL = (1 << 62) - 1
"""The last 62 bits of a UUIDv7 are chance, the two before them its variant."""

_FEW = 24
"""Below so many ids, making them one by one is faster than setting arrays up."""


def client_id(scope: str, topic: str, text: str) -> bytes:
    """Return the 16-byte id of the record that a client names `text`.

    `scope` says who chose it (a source's kind and name, a token), so that two clients with the same
    names never meet; `topic` keeps the same name in two topics apart. Each part is hashed with its
    length in front, so no two triples have the same bytes. A lone surrogate counts as itself.
    """
    digest = hashlib.blake2b(digest_size=UUID_BYTES)
    for part in (scope, topic, text):
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    laid_out = bytearray(digest.digest())
    laid_out[6] = (CHOSEN_BY_CLIENT << 4) | (laid_out[6] & 0x0F)
    laid_out[8] = 0x80 | (laid_out[8] & 0x3F)
    return bytes(laid_out)


def give_ids(batch: Batch, clock: Clock) -> None:
    """Give every record with `NO_ID` a new UUIDv7: one by chance, the others counted up from it.

    RFC 9562 (6.2, method 2) allows this, and it costs a tenth of asking for chance each time. So of
    records that came together, the later one has the greater id.
    """
    n = batch.ids.count(NO_ID)
    if n == 0:
        return
    made = _counted_up(clock.new_id(), n)
    if n == len(batch):
        batch.ids = made
    else:
        following = iter(made)
        batch.ids = [next(following) if id_ == NO_ID else id_ for id_ in batch.ids]


def _counted_up(first: bytes, n: int) -> list[bytes]:
    tail = int.from_bytes(first[8:], "big")
    if n < _FEW:
        head = first[:8]
        return [head + (_VARIANT | ((tail + i) & _TAIL)).to_bytes(8, "big") for i in range(n)]
    words = np.empty((n, 2), ">u8")
    words[:, 0] = int.from_bytes(first[:8], "big")
    counted = np.arange(n, dtype=np.uint64) + np.uint64(tail & _TAIL)
    words[:, 1] = (counted & np.uint64(_TAIL)) | np.uint64(_VARIANT)
    made: list[bytes] = words.view("V16").ravel().tolist()
    return made
