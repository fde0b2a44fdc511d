"""Routes: a path and the fields that it sets, against the schema of their topic."""

from __future__ import annotations

from collections.abc import Iterator

from headrace.define.paths import HOLE, check_path
from headrace.define.pipeline import Route
from headrace.define.problem import Faults, nearest
from headrace.model import plan as plans
from headrace.model.errors import Invalid
from headrace.model.schema import Schema


def compile_route(route: Route, topic: plans.Topic | None, faults: Faults) -> plans.Route | None:
    """Return a route, or None with its faults added; None too if its topic is not known."""
    before = len(faults.problems)
    with faults.collect(route.place):
        check_path(route.path)
    _check_parameters(route, faults)
    fixed = dict(_fixed(route, topic, faults)) if topic else {}
    if topic is None or len(faults.problems) > before:
        return None
    return plans.Route(route.path, topic.name, fixed, route.reply, route.headers)


def _check_parameters(route: Route, faults: Faults) -> None:
    """Add a fault for each path parameter that is used or declared alone."""
    declared = set(HOLE.findall(route.path))
    used = {name for text in route.fixed.values() for name in HOLE.findall(str(text))}
    for name in sorted(used - declared):
        faults.add(
            route.place,
            f"{{{name}}} is no parameter of the path {route.path!r}",
            hint=nearest(name, declared) or f"Write {{{name}}} as a segment of the path.",
            code="unknown_parameter",
        )
    for name in sorted(declared - used):
        faults.add(
            route.place,
            f"The path's parameter {{{name}}} is not used",
            hint=f'Set a field to it: {{"{name}": "{{{name}}}"}}.',
            code="unused_parameter",
        )


def _fixed(route: Route, topic: plans.Topic, faults: Faults) -> Iterator[tuple[str, str]]:
    """Yield the fields that a route sets, by their JSON names."""
    for name, text in route.fixed.items():
        with faults.collect(route.place):
            if not isinstance(text, str):
                raise Invalid(f"The field {name!r} is set to {text!r}, not text", code="bad_field")
            yield (_checked_field(name, text, topic.schema) if topic.schema else name), text


def _checked_field(name: str, text: str, schema: Schema) -> str:
    """Return the JSON name of a field; `Invalid` if a route cannot set it to a text."""
    found = next((f for f in schema.fields if name in (f.alias, f.name)), None)
    if found is None:
        near = nearest(name, [f.alias for f in schema.fields])
        raise Invalid(
            f"{schema.name} has no field {name!r} for the route to set",
            hint=f"{near} Or declare it: {name}: str | None = None".strip(),
            code="unknown_field",
        )
    if found.type.kind not in {"string", "json"}:
        raise Invalid(
            f"A route sets fields to text, and {found.alias!r} is a {found.type.kind}",
            hint="Declare the field as str.",
            code="bad_field",
        )
    choices = found.type.choices
    if choices and not HOLE.search(text) and text not in choices:
        raise Invalid(
            f"The route sets {found.alias!r} to {text!r}, which is none of its choices",
            hint=f"Choices: {', '.join(choices)}.",
            code="bad_field",
        )
    return found.alias
