"""The JSON Schema of config files, for editors and other programs."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from batchkit.config.keys import LOADER, TOP, Key, Keys, adapter_of, keys_of_source, keys_of_stage
from batchkit.plugins import Plugins, installed
from batchkit.sources import Combination

__all__ = ["COMBINED", "LIMITS", "json_schema"]

# What the dataclasses of the stages refuse when they are made, beyond their types.
LIMITS: Mapping[tuple[str, str], Mapping[str, Any]] = MappingProxyType(
    {
        ("batch", "size"): {"minimum": 1},
        ("batch", "remainder"): {"enum": ["keep", "drop", "pad"]},
        ("repeat", "count"): {"minimum": 1},
        ("take", "count"): {"minimum": 0},
        ("skip", "count"): {"minimum": 0},
        ("shuffle", "seed"): {"minimum": 0},
        ("random_map", "seed"): {"minimum": 0},
    }
)


COMBINED: Mapping[tuple[str, str], Mapping[str, Any]] = MappingProxyType(
    {
        ("interleave", "block"): {"minimum": 1},
        ("zip", "stop"): {"enum": ["error", "shortest"]},
        ("mix", "stop"): {"enum": ["first", "all", "forever"]},
    }
)
"""The same for combinations of pipelines."""
_LIST = {"type": "array", "items": {"$ref": "#/$defs/pipeline"}, "minItems": 1}
_NAMED = {"type": "object", "additionalProperties": {"$ref": "#/$defs/pipeline"}, "minProperties": 1}
_PIPELINES: Mapping[str, Any] = MappingProxyType(
    {"list": _LIST, "named": {"anyOf": [_LIST, _NAMED]}, "tree": {"$ref": "#/$defs/pipelines"}}
)


def json_schema(plugins: Plugins | None = None) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of config files, with the sources and stages of all plugins.

    It covers structure, names and types; whether a function can be imported or a file can be
    read is known only when the file is loaded.
    """
    plugins = installed() if plugins is None else plugins
    definitions = {
        "pipeline": {
            "type": "object",
            "description": "Where rows come from, and what happens to them.",
            "properties": {
                "source": {"$ref": "#/$defs/source"},
                "stages": {"type": "array", "items": {"$ref": "#/$defs/stage"}, "default": []},
            },
            "required": ["source"],
            "additionalProperties": False,
        },
        "pipelines": {
            "description": "A pipeline, or a nesting of pipelines.",
            "anyOf": [
                {"$ref": "#/$defs/pipeline"},
                {"type": "array", "items": {"$ref": "#/$defs/pipelines"}, "minItems": 1},
                {"type": "object", "additionalProperties": {"$ref": "#/$defs/pipelines"}, "minProperties": 1},
            ],
        },
        "source": {"oneOf": [_source(kind, plugins) for kind in plugins.names("sources")]},
        "stage": {"anyOf": [_stage(verb, plugins) for verb in plugins.names("stages")]},
        "loader": {**_object(LOADER), "description": TOP["loader"].text},
    }
    named = {"type": "object", "minProperties": 1, "additionalProperties": {"$ref": "#/$defs/pipeline"}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "batchkit config",
        "description": "An input pipeline and how it is loaded.",
        "type": "object",
        "properties": {
            "plugins": _value(TOP["plugins"]),
            "pipeline": {"$ref": "#/$defs/pipeline"},
            "pipelines": {**named, "description": TOP["pipelines"].text},
            "loader": {"$ref": "#/$defs/loader"},
        },
        "oneOf": [{"required": ["pipeline"]}, {"required": ["pipelines"]}],
        "additionalProperties": False,
        "$defs": definitions,
    }


def _source(kind: str, plugins: Plugins) -> dict[str, Any]:
    factory = plugins.source(kind)
    keys, others = keys_of_source(factory)
    schema = _object(keys, kind, COMBINED)
    if isinstance(factory, type) and issubclass(factory, Combination):
        schema["properties"]["pipelines"] = _PIPELINES[factory.nesting]
    return {
        **schema,
        "description": _first_line(factory),
        "properties": {"kind": {"const": kind}, **schema["properties"]},
        "required": ["kind", *schema["required"]],
        "additionalProperties": others,
    }


def _stage(verb: str, plugins: Plugins) -> dict[str, Any]:
    """Return the schema of a stage in all its forms: the verb alone, its arguments, or the first one's value."""
    stage = plugins.stage(verb)
    keys = keys_of_stage(stage)
    arguments = _object(keys, verb)
    forms = [arguments]
    for name in list(keys)[:1]:
        first = arguments["properties"][name]
        others_default = not any(key.required for its, key in keys.items() if its != name)
        if others_default:
            forms.append(first)
        if others_default and first.get("type") == "array":
            forms.append(first["items"])
    described = {"description": _first_line(stage)}
    whole = {
        "type": "object",
        "properties": {verb: {"anyOf": forms}},
        "required": [verb],
        "additionalProperties": False,
    }
    if arguments["required"]:
        return {**whole, **described}
    forms.append({"type": "null"})
    return {"anyOf": [{"const": verb}, whole], **described}


def _object(keys: Keys, verb: str = "", limits: Mapping[tuple[str, str], Mapping[str, Any]] = LIMITS) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: _value(key, limits.get((verb, name), {})) for name, key in keys.items()},
        "required": [name for name, key in keys.items() if key.required],
        "additionalProperties": False,
    }


def _value(key: Key, limits: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    schema = adapter_of(key.hint).json_schema()
    for form in schema.get("anyOf", [schema]):
        if form.get("type") != "null":
            form.update(limits)
    if key.text:
        schema["description"] = key.text
    if not key.required and _is_plain(key.default):
        schema["default"] = key.default
    return schema


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float)) or value in ([], {}) or value == [0, 1]


def _first_line(documented: Any) -> str:
    text = inspect.getdoc(documented) or ""
    if dataclasses.is_dataclass(documented) and text.startswith(f"{getattr(documented, '__name__', '')}("):
        return ""  # made by dataclass(), not written
    return text.partition("\n")[0]
