"""The JSON Schema of a configuration file, for editors: made from the keys that are read, and what plugins declare.

A type becomes the schema of what TOML can write for it. Options that only Python can give, such as functions, are left out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date, time
from inspect import cleandoc
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from typing_extensions import is_typeddict

from pocket_plug.primitives.secret_options import is_secret
from pocket_plug.primitives.typechecks import union_members
from pocket_plug.store.layer import Layer
from pocket_plug.store.layer_options import hints_of

from .config import is_needed, options_of
from .pocket import Offers
from .tables import ABOUT, EXECUTOR, PLUGINS, RUNS, STORE, FileKey

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_VARIABLE: Schema = {"type": "string", "pattern": r"\$\{[^}]*\}"}
"""A string with an environment variable, whose value isn't known."""

_ANY_TABLE: Schema = {"type": "object"}

_LISTS = (list, tuple, Collection, Iterable, Sequence)
"""The types that take a list of TOML."""

_PLAIN: Mapping[Any, Schema] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    Any: {},
    object: {},
}


def config_schema(offers: Offers) -> Schema:
    """The schema of `pocket.toml`, with the layers, schemes and settings that these plugins offer."""
    tables: dict[str, Schema] = {
        "store": {"$ref": "#/$defs/store"},
        "stores": {"type": "object", "additionalProperties": {"$ref": "#/$defs/store"}},
        "executors": {"type": "object", "additionalProperties": _executor(offers.executors)},
        "plugins": _plugins(offers.settings),
        "runs": _table({name: _declared(key) for name, key in RUNS.items()}) | {"minProperties": 1},
    }
    layers = [_layer(name, kind) for name, kind in sorted(offers.layers.items())]
    needing = {name for name, kind in offers.layers.items() if any(map(is_needed, options_of(kind).values()))}
    by_name: Schema = {"enum": sorted(offers.layers.keys() - needing), "description": "A layer, with its defaults."}
    return {
        "$schema": DIALECT,
        "title": "pocket_plug's configuration",
        **_table({name: {"description": about, **tables[name]} for name, about in ABOUT.items()}),
        "$defs": {"store": _store(offers.backends), "layer": {"anyOf": [by_name, *layers]}},
    }


def _table(properties: Mapping[str, Schema], needed: Collection[str] = ()) -> Schema:
    required = {"required": sorted(needed)} if needed else {}
    return {"type": "object", "properties": dict(properties), "additionalProperties": False, **required}


def _declared(key: FileKey) -> Schema:
    return {"description": key.about, **(schema_of(key.hint) or {})}


def _store(schemes: Iterable[str]) -> Schema:
    pattern = rf"^(memory://$|(?:{'|'.join(map(re.escape, sorted({*schemes} - {'memory'})))})://)"
    url = {**_declared(STORE["url"]), "default": "memory://", "anyOf": [{"pattern": pattern}, _VARIABLE]}
    layers = {**_declared(STORE["layers"]), "items": {"$ref": "#/$defs/layer"}}
    return _table({"url": url, "layers": layers})


def _executor(schemes: Iterable[str]) -> Schema:
    pattern = rf"^(?:{'|'.join(map(re.escape, sorted(schemes)))})(?:://|$)"
    return {**_declared(EXECUTOR), "anyOf": [{"pattern": pattern}, _VARIABLE]}


def _plugins(settings: Mapping[str, Any]) -> Schema:
    own = {name: _of_settings(kind) for name, kind in settings.items()}
    keys = {name: _declared(key) for name, key in PLUGINS.items()}
    return {"type": "object", "properties": {**keys, **own}, "additionalProperties": _ANY_TABLE}


def _of_settings(kind: Any) -> Schema:
    """The schema of a TypedDict; any table if it isn't one, or if the type of a field can't be resolved."""
    try:
        hints = get_type_hints(kind) if is_typeddict(kind) else None
    except NameError:
        hints = None
    if hints is None:
        return _ANY_TABLE
    found = {name: schema_of(hint) for name, hint in hints.items()}
    return _table({name: schema for name, schema in found.items() if schema is not None})


def _layer(name: str, kind: type[Layer]) -> Schema:
    hints = hints_of(cast("Any", kind))
    properties: dict[str, Schema] = {"use": {"const": name}}
    needed = ["use"]
    for option, field in options_of(kind).items():
        schema = schema_of(hints.get(option, Any))
        if schema is not None:
            default = field.default
            shows = isinstance(default, str | int | float) and not is_secret(field)
            properties[option] = {**schema, "default": default} if shows else schema
        if is_needed(field):
            needed.append(option)
    about = cleandoc(kind.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    return {"description": about, **_table(properties, needed)}


def schema_of(hint: Any) -> Schema | None:
    """The schema of what TOML may write for a type; None if it can't write any. An unknown type allows everything.

    >>> schema_of(int | None), schema_of(tuple[str, ...])
    ({'type': 'integer'}, {'type': 'array', 'items': {'type': 'string'}})
    """
    members = union_members(hint)
    if len(members) > 1:
        found = [schema for member in members if (schema := schema_of(member)) is not None]
        return {"anyOf": found} if found[1:] else found[0] if found else None
    if hint in _PLAIN:
        return dict(_PLAIN[hint])
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        texts = [value for value in arguments if isinstance(value, str)]
        return {"anyOf": [{"enum": [*arguments]}, _VARIABLE]} if texts else {"enum": [*arguments]}
    kind: Any = origin or hint
    if not isinstance(kind, type) or issubclass(kind, date | time):
        return {}
    if issubclass(kind, Mapping):
        return {"type": "object"}
    if any(kind is each for each in _LISTS):
        items = schema_of(arguments[0]) if arguments else {}
        return None if items is None else {"type": "array", "items": items}
    return None
