"""Values for a JSON schema, with a choice at every place.

A schema describes what a value may be, but not everything that its model checks. So each place of a value has
alternatives, and :meth:`Sampler.reject` moves on to the next one where the model did not accept the value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

from bridge.operations.examples.numbers import numbers
from bridge.operations.examples.texts import json_text, texts

Schema = Mapping[str, Any]
#: The names and indexes that lead to a place in a value.
Path = tuple[Any, ...]
#: Names of the definitions that a place is in.
Within = tuple[str, ...]
Make = Callable[[], Any]

#: Most items that an array or object may need.
_MOST_ITEMS = 100
#: Most alternatives of one place.
_MOST_ALTERNATIVES = 40
#: Most places of a value: models may refer to each other in any number of ways.
_MOST_PLACES = 2000
_ANYTHING: tuple[Any, ...] = ("text", 1, {}, [], True, None)


class NoValue(Exception):
    """There is no value for a place: the model contains itself, or it needs too much."""


class Sampler:
    """Makes values for a schema.

    Arguments:
        schema: A JSON schema that pydantic has made.
        definitions: Its ``$defs``.
    """

    def __init__(self, schema: Schema, definitions: Mapping[str, Schema]) -> None:
        self._schema = schema
        self._definitions = definitions
        self._chosen: dict[Path, int] = {}
        self._counts: dict[Path, int] = {}
        self._places = 0

    def value(self) -> Any:
        """Return the value of the current choices.

        Raises:
            NoValue: No value can be made.
        """
        self._places = 0
        return self._value(self._schema, (), ())

    def reject(self, place: Path) -> bool:
        """Choose the next alternative at *place*, or else above it; return False if none is left."""
        for end in range(len(place), -1, -1):
            path = place[:end]
            if (after := self._chosen.get(path, 0) + 1) < self._counts.get(path, 0):
                below = [one for one in self._chosen if len(one) > end and one[:end] == path]
                for one in below:
                    del self._chosen[one], self._counts[one]
                self._chosen[path] = after
                return True
        return False

    def _value(self, schema: Any, path: Path, within: Within, number: int = 0) -> Any:
        """Return a value for a place.

        Arguments:
            number: How many values of the same schema exist that it must differ from.
        """
        self._places += 1
        if self._places > _MOST_PLACES:
            raise NoValue
        options = list(islice(self._alternatives(schema, path, within), _MOST_ALTERNATIVES))
        for at in range(self._chosen.get(path, number), len(options)):
            try:
                value = options[at]()
            except NoValue:
                continue
            self._chosen[path], self._counts[path] = at, len(options)
            return value
        raise NoValue

    def _alternatives(self, schema: Any, path: Path, within: Within) -> Iterator[Make]:
        if not isinstance(schema, Mapping):
            yield from _constants(_ANYTHING if schema else ())
            return
        yield from _constants(schema.get("examples", ()), [schema["example"]] if "example" in schema else ())
        if schema.get("default") is not None:
            yield partial(_same, schema["default"])
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            if name not in within:
                yield from self._alternatives(_merged(self._definitions[name], schema), path, (*within, name))
        elif "allOf" in schema:
            yield from self._alternatives(_merged(*schema["allOf"], schema), path, within)
        elif options := schema.get("anyOf") or schema.get("oneOf"):
            for option in sorted(options, key=lambda one: one == {"type": "null"}):
                yield from self._alternatives(option, path, within)
        elif "const" in schema:
            yield from _constants([schema["const"]])
        elif "enum" in schema:
            yield from _constants(schema["enum"])
        else:
            yield from self._of_type(schema, path, within)

    def _of_type(self, schema: Schema, path: Path, within: Within) -> Iterator[Make]:
        match schema.get("type"):
            case list() as kinds:
                for kind in sorted(kinds, key=lambda one: one == "null"):
                    yield from self._of_type({**schema, "type": kind}, path, within)
            case "string" if "contentSchema" in schema:
                yield lambda: json_text(self._value(schema["contentSchema"], (*path, "json"), within))
            case "string":
                yield from _constants(texts(schema))
            case "integer" | "number":
                yield from _constants(numbers(schema))
            case "boolean":
                yield from _constants((True, False))
            case "null":
                yield from _constants((None,))
            case "array":
                yield from self._arrays(schema, path, within)
            case "object":
                yield from self._objects(schema, path, within)
            case _:
                yield from _constants(_ANYTHING)

    def _arrays(self, schema: Schema, path: Path, within: Within) -> Iterator[Make]:
        first: Sequence[Any] = schema.get("prefixItems", ())
        least, most = schema.get("minItems", 0), schema.get("maxItems", _MOST_ITEMS)
        items = schema.get("items", not first)

        def array(size: int) -> list[Any]:
            schemas = [*first, *([items] * (size - len(first)))][:size]
            unique = schema.get("uniqueItems", False)
            return [self._value(one, (*path, at), within, at if unique else 0) for at, one in enumerate(schemas)]

        sizes = (max(least, min(len(first) or 1, most)), least, least + 1)
        for size in dict.fromkeys(sizes):
            if least <= size <= min(most, _MOST_ITEMS):
                yield partial(array, size)

    def _objects(self, schema: Schema, path: Path, within: Within) -> Iterator[Make]:
        properties: Schema = schema.get("properties", {})
        required = set(schema.get("required", ()))

        def made(optional: bool) -> dict[str, Any]:
            found = {}
            for name, one in properties.items():
                # A constant is usually what the models of a union are told apart by.
                if name in required or (isinstance(one, Mapping) and one.keys() & {"const", "examples"}):
                    found[name] = self._value(one, (*path, name), within)
                elif optional:
                    try:
                        found[name] = self._value(one, (*path, name), within)
                    except NoValue:
                        continue
            wanted = max(schema.get("minProperties", 0), 0 if properties else 1)
            return found | self._further(schema, path, within, wanted - len(found))

        yield partial(made, False)
        if required < properties.keys():
            yield partial(made, True)
        if not properties and not schema.get("minProperties"):
            yield dict

    def _further(self, schema: Schema, path: Path, within: Within, wanted: int) -> dict[str, Any]:
        """Return properties that have no name in the schema, as in a dict."""
        if wanted > _MOST_ITEMS:
            raise NoValue
        names, values = schema.get("propertyNames", {"examples": ["key"]}), schema.get("additionalProperties", True)
        if by_pattern := schema.get("patternProperties"):
            pattern, values = next(iter(by_pattern.items()))
            names = {"pattern": pattern}
        if values is True and not schema.get("minProperties"):
            return {}  # any property may be there, and none needs to be
        found = {}
        for number in range(wanted):
            name = self._value({"type": "string"} | names, (*path, "", number), within, number)
            found[name] = self._value(values, (*path, name), within)
        return found


def _constants(*some: Any) -> Iterator[Make]:
    for values in some:
        for value in values:
            yield partial(_same, value)


def _same(value: Any) -> Any:
    return value


def _merged(*schemas: Schema) -> Schema:
    """Return the properties of all *schemas*, without what only joins them."""
    return {name: value for one in schemas for name, value in one.items() if name not in ("$ref", "allOf")}
