"""Dead letters of an epoch: records that became no row, with the reason and the original bytes."""

from __future__ import annotations

import hashlib
import uuid
from typing import Literal

import pyarrow as pa

from headrace.model.plan import DEAD_LETTER_SCHEMA
from headrace.stage.records import Slice, attempt

LetterStage = Literal["decode", "row"]


class Letters:
    """Gathers dead letters. `failed_at_us` is when the epoch started, not when each failed."""

    def __init__(self, pipeline: str, failed_at_us: int) -> None:
        self._pipeline = pipeline
        self._failed_at_us = failed_at_us
        self._rows: list[tuple[object, ...]] = []

    def __len__(self) -> int:
        """Return the number of letters so far."""
        return len(self._rows)

    def add(
        self, part: Slice, at: int, output: str | None, fingerprint: int, code: str, message: str
    ) -> None:
        """Add the record at row `at` of a slice; `output` names the table that alone failed."""
        record = {name: part.records.column(name)[at] for name in part.records.schema.names}
        headers: bytes = record["headers"].as_py()
        offset: int = record["offset"].as_py()
        self._rows.append(
            (
                letter_id(part, offset, output),
                part.topic,
                part.partition,
                offset,
                str(uuid.UUID(bytes=record["id"].as_py())),
                record["received_at"].value,
                self._failed_at_us,
                "row" if output else "decode",
                output,
                code,
                message,
                f"{fingerprint:016x}",
                attempt(headers),
                record["key"].as_py(),
                headers.decode(errors="replace") or None,
                record["value"].as_py(),
                self._pipeline,
            )
        )

    def table(self) -> pa.Table | None:
        """Return the letters, `DEAD_LETTER_SCHEMA`; None if there are none."""
        if not self._rows:
            return None
        columns = zip(*self._rows, strict=True)
        arrays = [pa.array(c, f.type) for c, f in zip(columns, DEAD_LETTER_SCHEMA, strict=True)]
        return pa.Table.from_arrays(arrays, schema=DEAD_LETTER_SCHEMA)


def letter_id(part: Slice, offset: int, output: str | None) -> str:
    """Return the UUID text of a failure: the same one however often it is met."""
    stage: LetterStage = "row" if output else "decode"
    parts = (part.topic, part.incarnation, str(part.partition), str(offset), stage, output or "")
    text = "\n".join(parts)
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return str(uuid.UUID(bytes=digest))
