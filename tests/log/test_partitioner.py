from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.log.partitioner import murmur2, murmur2_many, partition_of
from headrace.testing.log_suite import KAFKA_HASHES


@pytest.mark.parametrize("key", KAFKA_HASHES)
def test_murmur2_is_kafkas(key):
    assert murmur2(key) == KAFKA_HASHES[key] & 0xFFFFFFFF


def test_partition_clears_the_sign():
    assert partition_of(b"21", 7) == (KAFKA_HASHES[b"21"] & 0x7FFFFFFF) % 7


@given(st.lists(st.binary(max_size=70), max_size=40))
def test_many_are_hashed_like_one(names):
    assert murmur2_many(names).tolist() == [murmur2(name) for name in names]
