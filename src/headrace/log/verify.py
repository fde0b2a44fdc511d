"""Look through every stored byte of a log for damage, without changing anything."""

from __future__ import annotations

from pathlib import Path

import apsw
import msgspec

from headrace.log.row import unpack
from headrace.log.segment import (
    load_contents,
    open_reading,
    query,
    reading,
    segment_numbers,
    segment_path,
)
from headrace.model.batch import decode
from headrace.model.errors import Corrupt, HeadraceError

Key = tuple[int, int]


class Damage(msgspec.Struct, frozen=True):
    """Something wrong in a log: in which file, and what."""

    path: Path
    message: str


def verify(directory: Path) -> list[Damage]:
    """Return what is damaged in the log in `directory`; nothing if all is well or there is none.

    Finds changed bits, shortened files, missing segments and missing records, also beside a running
    writer. Reads everything: about the disk's speed. What it cannot see is a log whose newest
    records were cut off cleanly; the ledger's offsets tell that.
    """
    damages: list[Damage] = []
    ends: dict[Key, int] = {}
    expected = None
    for number in segment_numbers(directory):
        path = segment_path(directory, number)
        if expected is not None and number != expected:
            damages.append(Damage(path, f"The segments before {path.name} are missing"))
            ends.clear()
        expected = number + 1
        try:
            _verify_segment(path, ends, damages)
        except FileNotFoundError:
            continue  # It was trimmed meanwhile.
        except HeadraceError as error:
            damages.append(Damage(path, error.message))
            ends.clear()
    return damages


def _verify_segment(path: Path, ends: dict[Key, int], damages: list[Damage]) -> None:
    """Check one segment, given where partitions ended in the one before; leaves where they end."""
    with reading(path):
        connection = open_reading(path)
        try:
            # One snapshot for all: a writer may go on meanwhile.
            connection.execute("BEGIN")
            found = [text for (text,) in query(connection, "PRAGMA integrity_check(3)")]
            if found != ["ok"]:
                damages.extend(Damage(path, text) for text in found)
            firsts = load_contents(connection).firsts
            for key, first in firsts.items():
                if ends.get(key, first) != first:
                    damages.append(Damage(path, f"Records before offset {first} are missing"))
            ends.clear()
            ends.update(firsts)
            _verify_batches(path, connection, ends, damages)
        finally:
            connection.close()


def _verify_batches(
    path: Path, connection: apsw.Connection, ends: dict[Key, int], damages: list[Damage]
) -> None:
    for row in connection.execute("SELECT * FROM batches ORDER BY topic, partition, base_offset"):
        topic, partition, base, n = row[:4]
        if ends.get((topic, partition), base) != base:
            damages.append(Damage(path, f"Records before offset {base} are missing"))
        ends[topic, partition] = base + n
        try:
            decode([(base, n, unpack(row))])
        except Corrupt as error:
            damages.append(Damage(path, error.message))
