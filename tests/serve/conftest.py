"""A data directory with tables, views and a ledger, written epoch by epoch as the owner would."""

from __future__ import annotations

import asyncio
import datetime as dt
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import httpx2
import msgspec
import pyarrow as pa
import pytest

from headrace.app.site import site_of
from headrace.log.embedded import EmbeddedLog, EmbeddedLogReader
from headrace.model.clock import SystemClock
from headrace.model.deployment import Deployment, TableSettings
from headrace.model.layout import Layout
from headrace.model.plan import (
    DEAD_LETTER_SCHEMA,
    DEAD_LETTERS,
    Column,
    Plan,
    Query,
    QueryParameter,
    Route,
    Table,
    TableInput,
    Topic,
    View,
)
from headrace.model.schema import Field, Schema, Type
from headrace.process.ledger import FileChange, Ledger, LedgerRow
from headrace.serve.api import Stores, create_app
from headrace.tables.near import NearTables

PROGRAM = Path(__file__).with_name("server_process.py")
UTC = pa.timestamp("us", tz="UTC")
T0 = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

SYSTEM = (
    Column("event_id", "VARCHAR"),
    Column("received_at", "TIMESTAMP WITH TIME ZONE"),
    Column("_topic", "VARCHAR"),
    Column("_partition", "INTEGER"),
    Column("_offset", "BIGINT"),
)
SALES = (
    Column("host", "VARCHAR"),
    Column("price", "DOUBLE"),
    Column("amount", "DECIMAL(20,2)"),
    Column("total", "DECIMAL(38,0)"),
    Column("n", "BIGINT"),
    Column("paid", "BOOLEAN"),
    Column("day", "DATE"),
    Column("tags", "VARCHAR[]"),
    Column("extra", "MAP(VARCHAR, BIGINT)"),
    Column("place", 'STRUCT(city VARCHAR, "at" TIMESTAMP WITH TIME ZONE)'),
    Column("raw", "BLOB"),
    Column('odd"name&<more>', "VARCHAR"),
    *SYSTEM,
)
SALES_SCHEMA = pa.schema(
    [
        ("host", pa.string()),
        ("price", pa.float64()),
        ("amount", pa.decimal128(20, 2)),
        ("total", pa.decimal128(38, 0)),
        ("n", pa.int64()),
        ("paid", pa.bool_()),
        ("day", pa.date32()),
        ("tags", pa.list_(pa.string())),
        ("extra", pa.map_(pa.string(), pa.int64())),
        ("place", pa.struct([("city", pa.string()), ("at", UTC)])),
        ("raw", pa.binary()),
        ('odd"name&<more>', pa.string()),
        ("event_id", pa.string()),
        ("received_at", UTC),
        ("_topic", pa.string()),
        ("_partition", pa.int32()),
        ("_offset", pa.int64()),
    ]
)
BY_HOST_SCHEMA = pa.schema([("host", pa.string()), ("sales", pa.int64()), ("sum", pa.float64())])

PLAN = Plan(
    name="shop",
    topics=(
        Topic(
            "events",
            partitions=2,
            schema=Schema(
                "Event",
                (
                    Field("host", "Host", Type("string", limits={"min_length": 1})),
                    Field("n", "n", Type("integer"), nullable=True, required=False),
                    Field("tags", "tags", Type("list", item=Type("string"))),
                ),
            ),
        ),
        Topic("other", partitions=1),
    ),
    routes=(Route("/buy/{what}", "events", {"what": "{what}"}, "Bought!\n"),),
    tables=(
        Table("sales", (TableInput("events", "SELECT 1", ()),), SALES),
        Table("unborn", (TableInput("other", "SELECT 1", ()),), (Column("a", "BIGINT"), *SYSTEM)),
    ),
    views=(
        View(
            name="by_host",
            table="sales",
            sql="SELECT host, count(*) AS sales, sum(price) AS sum FROM sales GROUP BY host",
            columns=(
                Column("host", "VARCHAR"),
                Column("sales", "BIGINT"),
                Column("sum", "DOUBLE"),
            ),
            key=("host",),
            reads=("host", "price"),
            parts=(),
            final_sql="",
        ),
    ),
    queries=(
        Query(
            "/count",
            "SELECT {by}, CAST(sum(n) AS BIGINT) AS n, $least AS least FROM sales "
            "WHERE n >= $least GROUP BY 1 ORDER BY 1",
            (
                QueryParameter("by", "choice", choices=("host", "paid")),
                QueryParameter("least", "integer", default="0", required=False),
            ),
            ("sales",),
            (Column("host", "VARCHAR"), Column("n", "BIGINT")),
        ),
        Query(
            "/echo",
            "SELECT $s AS s, $i AS i, $f AS f, $b AS b, $t AS t, {'a': 1} AS braces",
            (
                QueryParameter("s", "string"),
                QueryParameter("i", "integer", required=False),
                QueryParameter("f", "number", required=False),
                QueryParameter("b", "boolean", required=False),
                QueryParameter("t", "timestamp", required=False),
                QueryParameter("unused", "string", required=False),
            ),
            (),
        ),
        Query(
            "/cast",
            "SELECT CAST($x AS INTEGER) AS x FROM by_host",
            (QueryParameter("x", "string"),),
            ("by_host",),
        ),
        Query(
            "/first",
            "SELECT host FROM by_host ORDER BY host LIMIT $n",
            (QueryParameter("n", "integer"),),
            ("by_host",),
        ),
        Query(
            "/endless",
            "SELECT sum(a.range * b.range) AS n FROM range(10000000) AS a, range(10000000) AS b",
            (),
            (),
        ),
        Query("/large", "SELECT range AS n FROM range(100001)", (), ()),
        Query("/twice", "SELECT 1 AS n, 2 AS n, 'infinity'::TIMESTAMPTZ AS t", (), ()),
    ),
)


def sale(offset: int, host: str | None = "a", **more: object) -> dict[str, object]:
    """Return a row of the table `sales`."""
    row: dict[str, object] = {
        "host": host,
        "price": offset / 2,
        "amount": Decimal("1.50"),
        "total": Decimal(10**20 + offset),
        "n": offset,
        "paid": offset % 2 == 0,
        "day": dt.date(2026, 1, 2),
        "tags": ["x", None],
        "extra": [("k", offset)],
        "place": {"city": "Oslo", "at": T0},
        "raw": b"\x00\xff",
        'odd"name&<more>': "it's",
        "event_id": f"00000000-0000-7000-8000-{offset:012d}",
        "received_at": T0 + dt.timedelta(seconds=offset),
        "_topic": "events",
        "_partition": 0,
        "_offset": offset,
    }
    return {**row, **more}


def letter(number: int, **more: object) -> dict[str, object]:
    """Return a dead letter."""
    row = dict.fromkeys(DEAD_LETTER_SCHEMA.names)
    row |= {
        "letter_id": f"letter-{number}",
        "topic": "events",
        "partition": 0,
        "offset": number,
        "failed_at": T0 + dt.timedelta(seconds=number),
        "stage": "decode",
        "code": "invalid_record",
        "message": "Expected `int`, got `str` - at `$.n`",
        "value": b'{"n": "x"}',
        "attempt": 1,
    }
    return {**row, **more}


class World:
    """The data directory's owner."""

    plan = PLAN
    sale = staticmethod(sale)
    letter = staticmethod(letter)
    sales_schema = SALES_SCHEMA

    def __init__(self, root, tables_url="") -> None:
        self.clock = SystemClock()
        self.layout = Layout.at(root)
        self.site = site_of(self.layout, self.clock, Deployment(tables=TableSettings(tables_url)))
        self.layout.run.mkdir(parents=True)
        self.tables = self.site.tables()
        self.ledger = Ledger(self.tables, PLAN.name, self.clock)
        self.log = EmbeddedLog(self.layout.log, self.clock)
        self.opened = {}
        self.offset = 0

    def table(self, name, schema):
        if name not in self.opened:
            self.opened[name] = self.tables.open(name) or self.tables.create(name, schema)
        return self.opened[name]

    def epoch(
        self,
        sales=(),
        letters=(),
        *,
        visible=True,
        offsets=None,
        schema=SALES_SCHEMA,
        incarnation="",
    ):
        """Run an epoch that adds these rows; `visible` False stops after the ledger's row."""
        staged = {}
        if sales:
            staged["tables/sales"] = (schema, pa.Table.from_pylist(list(sales), schema))
        if letters:
            staged[DEAD_LETTERS] = (
                DEAD_LETTER_SCHEMA,
                pa.Table.from_pylist(list(letters), DEAD_LETTER_SCHEMA),
            )
        last = self.ledger.last
        number = self.ledger.epoch + 1
        files = {}
        for name, (table_schema, rows) in staged.items():
            table = self.table(name, table_schema)
            previous = table.snapshot.txns.get(f"shop/{name}#epoch", 0)
            files[name] = FileChange(previous, (self.tables.stage(name, rows),))
        before = last.offsets if last else {}
        after = offsets or {"events/0": before.get("events/0", 0) + len(sales)}
        row = LedgerRow(
            epoch=number,
            committed_at_us=self.clock.now_us(),
            kind="epoch",
            plan=PLAN.fingerprint,
            incarnations={"events": incarnation},
            offsets={**before, **after},
            read_from={k: before.get(k, 0) for k in after},
            clocks={},
            files=files,
            table_epochs={
                **(last.table_epochs if last else {}),
                **dict.fromkeys(files, number),
            },
            topics={},
            tables={},
            topic_totals={},
            table_totals={},
        )
        self.ledger.append(row)
        if visible:
            self.show(row, schema)
        return row

    def show(self, row, schema=SALES_SCHEMA):
        """Commit an epoch's files."""
        for name, change in row.files.items():
            table = self.opened[name]
            wider = schema if name == "tables/sales" else None
            table.commit(change.add, txns={f"shop/{name}#epoch": row.epoch}, schema=wider)

    def publish(self, rows, epoch, schema=BY_HOST_SCHEMA):
        """Publish the view `by_host` whole."""
        table = self.table("views/by_host", schema)
        file = self.tables.stage("views/by_host", pa.Table.from_pylist(list(rows), schema))
        words = {"table_version": "1", "epoch": str(epoch), "state_version": "1"}
        table.commit([file], table.snapshot.files, metadata=words)


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "data")
    yield made
    made.log.close()


class Client:
    """The application, asked in process."""

    def __init__(self, world, plan=PLAN, *, tables=None, alone=True, **more) -> None:
        tables = tables or world.tables
        folder = None if isinstance(tables, NearTables) else world.layout.root
        self.reader = EmbeddedLogReader(world.layout.log)
        self.app = create_app(
            plan,
            Stores(tables, folder, world.log, self.reader),
            world.layout,
            world.clock,
            alone=alone,
            waits_for=() if alone else ("collect", "process"),
            **more,
        )
        self.runner = asyncio.Runner()
        self.http = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(self.app), base_url="http://localhost"
        )

    def ask(self, path, method="GET", **more):
        return self.runner.run(self.http.request(method, path, **more))

    def get(self, path, **params):
        return self.ask(path, params=params)

    def rows(self, path, **params):
        answer = self.get(path, **params)
        assert answer.status_code == 200, answer.text
        return answer.json()["rows"]

    def close(self):
        async def end():
            async with self.app.router.lifespan_context(self.app):
                await self.http.aclose()
            self.reader.close()

        if self.app is None:
            return
        self.runner.run(end())
        self.runner.close()
        self.app = None


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A client of five sales that no test changes."""
    world = World(tmp_path_factory.mktemp("shop") / "data")
    for topic in world.plan.topics:
        world.log.create(topic.name, topic.partitions)
    hosts = ["a", "b", None, "a", "it's"]
    world.epoch([world.sale(i, host) for i, host in enumerate(hosts)])
    client = Client(world)
    yield client
    client.close()
    world.log.close()


@pytest.fixture
def client(world):
    client = Client(world)
    yield client
    client.close()


@pytest.fixture
def make_client(world):
    made = []

    def make(plan=PLAN, **more):
        made.append(Client(world, plan, **more))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def far(tmp_path, url, s3_environment):
    """A world whose tables are on an S3 server, and its client."""
    world = World(tmp_path / "data", url)
    with world.site.tables_to_read() as tables:
        client = Client(world, tables=tables)
        yield world, client
        client.close()
    world.log.close()


@pytest.fixture
def start_server(world):
    """Start the serve role as a process; whatever still runs at the end is killed."""
    world.layout.plan.write_bytes(msgspec.json.encode(world.plan))
    processes = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, PROGRAM, world.layout.root, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()
