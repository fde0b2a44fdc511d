"""A plan in words: what runs, and what is kept so that each view never starts over."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from headrace.define.binder import Binder, Node, walk
from headrace.model.pipeline_options import Options
from headrace.model.plan import SYSTEM_COLUMNS, Keyed, Plan, Table, Topic, View

_QUANTILES = ("quantile_cont", "quantile_disc", "quantile", "median", "approx_quantile")
_STATES = {
    "count": "a number",
    "count_if": "a number",
    "countif": "a number",
    "sum": "an exact sum, wide enough not to overflow",
    "fsum": "an exact sum",
    "kahan_sum": "an exact sum",
    "sumkahan": "an exact sum",
    "avg": "a number and an exact sum",
    "mean": "a number and an exact sum",
    "favg": "a number and an exact sum",
    "min": "the least value so far",
    "max": "the greatest value so far",
    "bool_and": "whether all were true so far",
    "every": "whether all were true so far",
    "bool_or": "whether one was true so far",
    "approx_count_distinct": "the 4,096 smallest hashes (a theta sketch; exact below that)",
    "first": "the earliest row's value, by time and event_id",
    "last": "the latest row's value, by time and event_id",
    **dict.fromkeys(_QUANTILES, "numbers of values in logarithmic buckets, 1 % wide"),
    **dict.fromkeys(
        ("stddev", "stddev_samp", "stddev_pop", "variance", "var_samp", "var_pop"),
        "a number, an exact sum and an exact sum of squares",
    ),
    **dict.fromkeys(
        ("arg_min", "arg_max", "argmin", "argmax", "min_by", "max_by"),
        "the value with the extreme, ties by time and event_id",
    ),
}
_DISTINCT = "every value with the number of its rows, so it is exact"
_KEYED_STATES = {
    **dict.fromkeys(("min", "max", *_QUANTILES), _DISTINCT),
    **dict.fromkeys(("bool_and", "every", "bool_or"), "how many were true and how many false"),
}
"""What is kept where rows may be taken out again."""


class Kept(msgspec.Struct, frozen=True):
    """What is kept for one aggregate of a view."""

    column: str
    """The output column that it stands in."""
    aggregate: str
    """The aggregate's SQL."""
    state: str
    """What is kept a group, in words."""


def kept(view: View) -> list[Kept]:
    """Return what is kept for each aggregate of a view, in the order of its columns."""
    binder = Binder()
    try:
        tree = binder.parse(view.sql)
        keyed = view.parts[0].retract_sql is not None
        found = []
        for item in tree["select_list"]:
            name = item.get("alias") or item.get("column_names", [_sql(item, binder)])[-1]
            found += [
                Kept(name, _sql(node, binder), _state(node, keyed=keyed))
                for node in _aggregates(item, binder)
            ]
        return found
    finally:
        binder.close()


def describe(plan: Plan) -> str:
    """Return a plan as text for people, one line a thing."""
    return "\n".join(_lines(plan)) + "\n"


def _lines(plan: Plan) -> Iterator[str]:
    yield f"pipeline {plan.name}, fingerprint {plan.fingerprint}"
    yield _options(plan.options)
    for topic in plan.topics:
        yield _topic(topic)
    for source in plan.sources:
        counts = f", its own counts into {source.counts}" if source.counts else ""
        yield f"source {source.name}: {source.kind} into {source.topic}{counts}"
    for route in plan.routes:
        headers = "with" if route.headers else "without"
        yield f"route {route.path}: one record of {route.topic}, {headers} its headers"
    for table in plan.tables:
        yield from _table(table)
    for view in plan.views:
        yield from _view(view)
    for name in plan.change_topics:
        views = ", ".join(v.name for v in plan.views if v.topic == name)
        yield f"change topic {name}: a record for each changed row of {views}"
    for query in plan.queries:
        names = ", ".join(p.name for p in query.parameters)
        yield f"query {query.path}({names}): reads {', '.join(query.reads)}"


def _options(options: Options) -> str:
    return (
        f"  an epoch every {options.every_s:g} s at most, of {options.epoch_bytes_max} bytes; "
        f"ids known for {options.horizon_s:g} s; log kept {options.log_retention_s:g} s"
    )


def _topic(topic: Topic) -> str:
    shape = f"{topic.schema.name} of {len(topic.schema.fields)} fields" if topic.schema else "JSON"
    words = [f"topic {topic.name}: {shape}, {topic.partitions} partition(s)"]
    words += [f"id {topic.id_field}"] if topic.id_field else []
    words += [f"key {topic.key_field}"] if topic.key_field else []
    return ", ".join(words)


def _table(table: Table) -> Iterator[str]:
    age = "all rows kept" if table.retention_s is None else f"rows kept {table.retention_s:g} s"
    if table.keyed is not None:
        age = _keyed(table.keyed)
    topics = ", ".join(i.topic for i in table.inputs)
    yield f"table {table.name}: from {topics}; {age}"
    columns = [f"{c.name} {c.type}" for c in table.columns if c.name not in SYSTEM_COLUMNS]
    yield f"  columns: {', '.join(columns)}"
    for source in table.inputs:
        yield f"  decodes of {source.topic}: {', '.join(source.fields)}"


def _keyed(keyed: Keyed) -> str:
    words = f"one row for each {', '.join(keyed.key)}, the one with the greatest {keyed.version}"
    if keyed.version is None:
        words = f"one row for each {', '.join(keyed.key)}, the one that came last"
    return f"{words}; taken out where {keyed.deleted}" if keyed.deleted else words


def _view(view: View) -> Iterator[str]:
    key = ", ".join(view.key) or "nothing: it is one row"
    yield f"view {view.name}: of {view.table}, fingerprint {view.fingerprint}; key {key}"
    if view.window is not None:
        window = view.window
        step = (
            f", one every {window.every_us / 1e6:g} s" if window.every_us < window.size_us else ""
        )
        yield f"  windows of {window.size_us / 1e6:g} s{step}, by {window.on}"
    for entry in kept(view):
        yield f"  {entry.column}: {entry.aggregate} keeps {entry.state}"


def _sql(node: Node, binder: Binder) -> str:
    return binder.text(_select(node)).removeprefix("SELECT ").replace("count_star()", "count(*)")


def _select(item: Node) -> Node:
    """Return the tree of a SELECT of one expression, without the name that it is given."""
    bare = {key: value for key, value in item.items() if key != "alias"}
    return {
        "type": "SELECT_NODE",
        "cte_map": {},
        "select_list": [bare],
        "from_table": {"type": "EMPTY"},
        "aggregate_handling": "STANDARD_HANDLING",
    }


def _aggregates(item: Node, binder: Binder) -> Iterator[Node]:
    for node in walk(item):
        if node.get("class") == "FUNCTION" and binder.function(node["function_name"]) in {
            "aggregate",
            "unknown",
        }:
            yield node


def _state(node: Node, *, keyed: bool) -> str:
    name = node["function_name"].lower().removesuffix("_star")
    if keyed and name in _KEYED_STATES:
        return _KEYED_STATES[name]
    if node.get("distinct") and name not in {"min", "max"}:
        return _DISTINCT
    return _STATES.get(name, "its own state")
