from __future__ import annotations

import pytest

from headrace.testing.log_suite import GUARANTEES


@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda g: g.__name__)
def test_kafka_keeps(guarantee, kafka_place):
    guarantee(kafka_place)
