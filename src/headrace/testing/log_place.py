"""What the guarantees of a log are made of: a place to open it at, records, and what is read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import pyarrow as pa

from headrace.model.batch import RECORDS, UNMARKED, Batch
from headrace.model.clock import CHOSEN_BY_CLIENT, Clock, SystemClock, uuid7
from headrace.model.errors import HeadraceError
from headrace.model.log import Log, LogReader

E = TypeVar("E", bound=HeadraceError)


class LogPlace(Protocol):
    """Where a log lives, and how it is opened there again and again."""

    def open(self) -> Log:
        """Open the writing end; the last one is closed."""

    def reader(self) -> LogReader:
        """Open a reading end, as another process would; there may be no log yet."""

    def wipe(self) -> None:
        """Lose everything, with nothing open: as a disk does, not as `delete`."""

    def worker(self) -> tuple[str, str]:
        """Return OPEN and ARGUMENT of `headrace.testing.log_worker` for this place."""


def values(*sent: bytes) -> Batch:
    """Return records with these values."""
    batch = Batch()
    for value in sent:
        batch.add(value, received_at=SystemClock().now_us(), id=server_id())
    return batch


def server_id() -> bytes:
    """Return an id that no client chose."""
    return SystemClock().new_id()


def client_id(number: int) -> bytes:
    """Return the id that a client chose by naming a number."""
    id_ = bytearray(uuid7(number, bytes([number] * 10)))
    id_[6] = (CHOSEN_BY_CLIENT << 4) | (id_[6] & 0x0F)
    return bytes(id_)


def random_batch(clock: Clock, n: int) -> Batch:
    """Return a batch with every kind of column value."""
    batch = Batch()
    for _ in range(n):
        chance = clock.random()
        batch.add(
            clock.new_id() * int(chance * 400),
            received_at=int(chance * (1 << 62)) - (1 << 61),
            id=clock.new_id(),
            key=None if chance < 1 / 3 else clock.new_id()[: int(chance * 16)],
            headers=b"{}" if chance > 1 / 2 else b"",
            mark=int(chance * (1 << 64)) if chance > 1 / 4 else UNMARKED,
        )
    return batch


def rows_of(batch: Batch) -> list[tuple[object, ...]]:
    """Return the records of a batch, one tuple each."""
    columns = (
        batch.received_at,
        batch.ids,
        batch.marks,
        batch.keys,
        batch.headers,
        batch.values,
    )
    return list(zip(*columns, strict=True))


def read_rows(log: LogReader, topic: str) -> list[tuple[object, ...]]:
    """Return all records of a topic's only partition, like `rows_of`."""
    table = read_table(log, topic, 0, 0)
    received_at = table.column("received_at").cast(pa.int64()).to_pylist()
    rest = [table.column(name).to_pylist() for name in ("id", "mark", "key", "headers", "value")]
    return list(zip(received_at, *rest, strict=True))


def read_values(log: LogReader, topic: str, partition: int = 0, start: int = 0) -> list[bytes]:
    """Return the values of a partition's records from `start` to its end."""
    return read_table(log, topic, partition, start).column("value").to_pylist()


def read_table(log: LogReader, topic: str, partition: int, start: int) -> pa.Table:
    """Return a partition's records from `start` to its end."""
    end = log.ends(topic)[partition]
    batches = list(log.read(topic, partition, start, end, bytes_max=1 << 30))
    return pa.Table.from_batches(batches, schema=RECORDS)


def expect_error(kind: type[E], act: Callable[[], object]) -> E:
    """Return the error of a kind that `act` must raise."""
    try:
        act()
    except kind as error:
        return error
    msg = f"{kind.__name__} was not raised"
    raise AssertionError(msg)


def run_threads(acts: Sequence[Callable[[], None]]) -> None:
    """Run functions at once, each in a thread, and raise what the first one to fail raised."""
    failures: list[BaseException] = []

    def run(act: Callable[[], None]) -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    threads = [threading.Thread(target=run, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
