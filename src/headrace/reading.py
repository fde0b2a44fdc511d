"""Reading a data directory in Python: what notebooks and scripts use, as `headrace.open`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa
    from duckdb import DuckDBPyConnection, DuckDBPyRelation

    from headrace.serve.owner import OwnerSql

SHOWN_ROWS = 20


def open(folder: str | Path) -> Data:  # noqa: A001 - what users call it, as headrace.open
    """Open a data directory to read its tables and views, also while a run writes them::

        import headrace

        with headrace.open("game-data") as data:
            data.names()
            data.table("events").pandas()
            data.sql("SELECT event_type, count(*) AS n FROM events GROUP BY 1").polars()

    Everything is read at its newest version. Tables on S3 or HDFS are found as the run found them.
    Raises `headrace.model.errors.Invalid` if there is no data directory.
    """
    return Data(Path(folder))


class Rows:
    """Rows that were read, all in memory, to be had as whatever one works with."""

    def __init__(self, table: pa.Table) -> None:
        """Hold a table of Arrow's."""
        self._table = table

    def __len__(self) -> int:
        """Return how many rows there are."""
        return int(self._table.num_rows)

    def __repr__(self) -> str:
        """Return the first rows as a table of text."""
        # A connection of its own: the default one refuses while its user has a result half read.
        own = _require("duckdb").connect()
        return str(Rows(self._table.slice(0, SHOWN_ROWS)).duckdb(own))

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self._table.column_names)

    def arrow(self) -> pa.Table:
        """Return a `pyarrow.Table`; timestamps are of microseconds in UTC."""
        return self._table

    def pandas(self) -> Any:  # noqa: ANN401 - pandas has no types of its own
        """Return a `pandas.DataFrame`."""
        _require("pandas")
        return self._table.to_pandas()

    def polars(self) -> pl.DataFrame:
        """Return a `polars.DataFrame`."""
        frame: pl.DataFrame = _require("polars").from_arrow(self._table)
        return frame

    def duckdb(self, connection: DuckDBPyConnection | None = None) -> DuckDBPyRelation:
        """Return a DuckDB relation, of DuckDB's own default connection unless one is given.

        A connection with a result that is half read is of no use to another relation: DuckDB then
        raises `ResourceInUseException`, which says what to do.
        """
        of = connection or _require("duckdb")
        relation: DuckDBPyRelation = of.from_arrow(self._table)
        return relation


class Data:
    """A data directory that is open to be read; `headrace.open` makes one. For one thread."""

    def __init__(self, folder: Path) -> None:
        """Open a folder."""
        clock = _loaded("model.clock").SystemClock()
        layout = _loaded("model.layout").Layout.at(folder)
        _loaded("app.data_directory").require(layout)
        site = _loaded("app.site").open_site(layout, clock)
        self._sql: OwnerSql = _loaded("serve.owner").OwnerSql(site)

    def names(self) -> list[str]:
        """Return what can be read: `tables.events`, `views.per_minute`, `dead_letters`, …"""
        return self._sql.names()

    def table(self, name: str, columns: Sequence[str] = ()) -> Rows:
        """Return a table or view, all of its columns or some.

        `name` is one of `names`, or what stands behind its dot. Raises `Invalid` with what there is
        instead, if it is not there.
        """
        quoted = _loaded("define.types").quoted
        chosen = ", ".join(quoted(column) for column in columns) or "*"
        schema, _, bare = name.rpartition(".")
        written = quoted(bare.strip('"'))
        return self.sql(f"SELECT {chosen} FROM {f'{schema}.' if schema else ''}{written}")

    def sql(self, query: str) -> Rows:
        """Return what one SELECT gives, in DuckDB's SQL, over everything in `names`.

        Raises `Invalid` with what is wrong with it.
        """
        return Rows(self._sql.query(query))

    def close(self) -> None:
        """Let go of what is held."""
        self._sql.close()

    def __enter__(self) -> Self:
        """Return itself; it is closed at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()


def _loaded(name: str) -> Any:  # noqa: ANN401 - a module of ours, loaded when it is needed
    return importlib.import_module(f"headrace.{name}")


def _require(library: str) -> Any:  # noqa: ANN401 - a module
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        raise _loaded("model.errors").Invalid(
            f"{library} is not installed", hint=f"pip install {library}", code="not_installed"
        ) from error
