"""Which partition a record goes to: by key, else by client-chosen id, else in turn.

A key goes where Kafka's Java clients send it (`DefaultPartitioner`: murmur2 with seed 0x9747b28c,
sign bit cleared, modulo the number of partitions), so the same key has the same partition in every
log. The topic's name plays no part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headrace.model.batch import Batch, any_client_chosen, is_client_chosen

_SEED = 0x9747B28C
_M = 0x5BD1E995
_MASK = 0xFFFFFFFF
_FEW = 8
"""Below so many names the scalar form is faster than setting arrays up."""
_PADDED_BYTES_MAX = 32 << 20


def murmur2(data: bytes) -> int:
    """Return the unsigned 32-bit hash that `org.apache.kafka.common.utils.Utils.murmur2` gives."""
    length = len(data)
    h = _SEED ^ length
    whole = length & ~3
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little") * _M & _MASK
        k = (k ^ (k >> 24)) * _M & _MASK
        h = (h * _M & _MASK) ^ k
    if length > whole:
        h = (h ^ int.from_bytes(data[whole:], "little")) * _M & _MASK
    h = (h ^ (h >> 13)) * _M & _MASK
    return h ^ (h >> 15)


def murmur2_many(names: Sequence[bytes]) -> np.ndarray:
    """Return `murmur2` of each name, uint32; all names are hashed a word at a time together."""
    lengths = np.array([len(name) for name in names], np.uint32)
    words = int(lengths.max(initial=0)) // 4 + 1
    if len(names) < _FEW or len(names) * words * 4 > _PADDED_BYTES_MAX:
        return np.array([murmur2(name) for name in names], np.uint32)
    padded = b"".join([name.ljust(words * 4, b"\0") for name in names])
    columns = np.frombuffer(padded, "<u4").reshape(len(names), words).T
    m = np.uint32(_M)
    h: np.ndarray = np.uint32(_SEED) ^ lengths
    whole = lengths // 4
    for at in range(words):
        k = columns[at] * m
        k = (k ^ (k >> 24)) * m
        mixed = np.where(at < whole, (h * m) ^ k, h)
        # The padding is zero, so a name's last, short word is the tail that Kafka folds in.
        is_tail = (at == whole) & (lengths % 4 != 0)
        h = np.where(is_tail, (h ^ columns[at]) * m, mixed)
    h = (h ^ (h >> 13)) * m
    return h ^ (h >> 15)


def partition_of(name: bytes, partitions: int) -> int:
    """Return the partition of a key or client-chosen id."""
    return (murmur2(name) & 0x7FFFFFFF) % partitions


def split(records: Batch, partitions: int, turn: int) -> dict[int, Sequence[int]]:
    """Return the positions of the records of each partition that gets any, in order.

    Records with neither key nor client-chosen id all go to partition `turn`.
    """
    if partitions == 1:
        return {0: range(len(records))}
    if records.keys.count(None) == len(records) and not any_client_chosen(records.ids):
        return {turn: range(len(records))}
    names = [
        key if key is not None else id_ if is_client_chosen(id_) else None
        for key, id_ in zip(records.keys, records.ids, strict=True)
    ]
    hashes = iter((murmur2_many([n for n in names if n is not None]) & 0x7FFFFFFF) % partitions)
    places: dict[int, list[int]] = {}
    for position, name in enumerate(names):
        partition = turn if name is None else int(next(hashes))
        places.setdefault(partition, []).append(position)
    return dict(places)
