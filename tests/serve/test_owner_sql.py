import pyarrow as pa
import pytest

from headrace.model.errors import HeadraceError, Invalid
from headrace.model.samples import SAMPLES
from headrace.serve import formats
from headrace.serve.owner import OwnerSql


@pytest.fixture
def sql(world):
    owner = OwnerSql(world.site)
    yield owner
    owner.close()


def rows(sql, query):
    return sql.query(query).to_pylist()


def test_names(world, sql):
    assert sql.names() == ["ledger"]
    world.epoch([world.sale(0)], [world.letter(1)])
    world.publish([{"host": "a", "sales": 1, "sum": 1.0}], 1)
    assert sql.names() == ["tables.sales", "views.by_host", "dead_letters", "ledger"]


@pytest.mark.parametrize(
    "name", ["sales", "tables.sales", '"tables"."sales"', "SALES", 'tables."sales"', "Tables.Sales"]
)
def test_a_table_by_its_names(world, sql, name):
    world.epoch([world.sale(0), world.sale(1)])
    assert rows(sql, f"SELECT count(*) AS n FROM {name}") == [{"n": 2}]


def test_views_dead_letters_and_the_ledger(world, sql):
    world.epoch([world.sale(0)], [world.letter(1)])
    world.publish([{"host": "a", "sales": 1, "sum": 1.0}], 1)
    assert rows(sql, "SELECT sales FROM by_host") == [{"sales": 1}]
    assert rows(sql, "FROM views.by_host SELECT host") == [{"host": "a"}]
    assert rows(sql, "SELECT letter_id FROM dead_letters") == [{"letter_id": "letter-1"}]
    assert rows(sql, "SELECT epoch, body->>'$.kind' AS kind FROM ledger") == [
        {"epoch": 1, "kind": "epoch"}
    ]


def test_samples_unless_the_pipeline_has_a_table_of_that_name(world, sql):
    rows_of = pa.table({"pid": [7]}, schema=pa.schema([("pid", pa.int64())]))
    world.tables.create(SAMPLES, rows_of.schema).commit([world.tables.stage(SAMPLES, rows_of)])
    assert rows(sql, "SELECT pid FROM samples") == [{"pid": 7}]
    theirs = pa.table({"drawn": ["blood"]})
    table = world.tables.create("tables/samples", theirs.schema)
    table.commit([world.tables.stage("tables/samples", theirs)])
    assert rows(sql, "SELECT * FROM samples") == [{"drawn": "blood"}]
    assert rows(sql, "SELECT pid FROM headrace.samples") == [{"pid": 7}]


def test_every_query_sees_the_newest_version(world, sql):
    for n in range(1, 4):
        world.epoch([world.sale(n)])
        joined = "SELECT count(*) AS n FROM sales JOIN tables.sales AS t USING (event_id)"
        assert rows(sql, joined) == [{"n": n}]


def test_common_table_expressions_and_all_that(world, sql):
    world.epoch([world.sale(0), world.sale(1)])
    query = "WITH x AS (SELECT n FROM sales), sales2 AS (FROM x) SELECT max(n) AS m FROM sales2"
    assert rows(sql, query) == [{"m": 1}]
    assert rows(sql, "DESCRIBE tables.sales")[0]["column_name"] == "host"
    assert rows(sql, "SELECT 1 AS a, 2 AS a") == [{"a": 1, "a_1": 2}]
    assert rows(sql, "VALUES (1)") == [{"col0": 1}]


def test_local_variables_are_no_tables(world, sql):
    world_table = sql.query("SELECT 1 AS a")
    assert world_table.num_rows == 1
    with pytest.raises(Invalid):
        sql.query("SELECT * FROM world_table")
    with pytest.raises(Invalid):
        sql.query("SELECT * FROM named")


def test_an_unknown_table_is_told_with_those_there_are(world, sql):
    world.epoch([world.sale(0)])
    with pytest.raises(Invalid) as refused:
        sql.query("SELECT * FROM salse")
    assert refused.value.code == "unknown_table"
    assert "Did you mean tables.sales?" in refused.value.hint
    assert "tables.sales, ledger" in refused.value.hint


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", "not_a_select"),
        ("SELECT 1; SELECT 2", "not_a_select"),
        ("DROP TABLE sales", "not_a_select"),
        ("COPY (SELECT 1) TO '/tmp/x'", "not_a_select"),
        ("SET threads = 1", "not_a_select"),
        ("ATTACH 'x.db'", "not_a_select"),
        ("SELEC 1", "invalid_sql"),
        ("SELECT nope FROM ledger", "invalid_sql"),
        ("SELECT CAST('x' AS INTEGER)", "invalid_sql"),
        ("SELECT * FROM tables.nope", "unknown_table"),
    ],
)
def test_what_is_wrong_with_a_query_is_told(sql, query, code):
    with pytest.raises(HeadraceError) as refused:
        sql.query(query)
    assert refused.value.code == code
    assert refused.value.message


def test_a_column_added_later_and_a_table_made_again(world, sql):
    names = [n for n in world.sales_schema.names if n != "n"]
    narrow = pa.schema([world.sales_schema.field(n) for n in names])
    world.epoch([world.sale(0)], schema=narrow)
    assert "n" not in sql.query("FROM sales").column_names
    world.epoch([world.sale(1)])
    assert rows(sql, "SELECT n FROM sales ORDER BY _offset") == [{"n": None}, {"n": 1}]
    world.tables.drop("tables/sales")
    with pytest.raises(HeadraceError):
        sql.query("SELECT n FROM sales")


def test_intervals_are_texts(sql):
    query = (
        "SELECT INTERVAL '1 month 2 days 90 seconds' AS a, INTERVAL '1 millisecond' AS b,"
        " INTERVAL '0 days' AS c, INTERVAL '-2 minutes' AS d, NULL::INTERVAL AS e"
    )
    assert formats.records(sql.query(query)) == [
        {"a": "P1M2DT90S", "b": "PT0.001S", "c": "PT0S", "d": "PT-120S", "e": None}
    ]
    assert formats.encode(sql.query(query), "csv", next_=None, paged=False).splitlines()[1] == (
        b'"P1M2DT90S","PT0.001S","PT0S","PT-120S",'
    )
