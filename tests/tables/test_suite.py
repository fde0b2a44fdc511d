from __future__ import annotations

import pytest

from headrace.tables.delta import DeltaTables
from headrace.testing.tables_suite import GUARANTEES


@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda g: g.__name__)
def test_local_delta_keeps(guarantee, tmp_path):
    guarantee(lambda clock: DeltaTables(tmp_path, clock))
