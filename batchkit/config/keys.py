"""Which keys may be written at a place of a config, and what their values may be."""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import functools
import inspect
import json
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeAlias, Union

import yaml
from pydantic import AfterValidator, Field, PlainValidator, TypeAdapter, ValidationError, WithJsonSchema
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation, PydanticUserError

__all__ = [
    "LOADER",
    "PIPELINE",
    "TOP",
    "Key",
    "Keys",
    "check_text",
    "check_value",
    "function_kind",
    "keys_of_source",
    "keys_of_stage",
    "read_value",
]


@dataclass(frozen=True, slots=True)
class Key:
    """One key: the type of its value, whether it must be there, and what it means."""

    hint: Any
    text: str = ""
    required: bool = False
    default: Any = None


Keys: TypeAlias = Mapping[str, Key]


def _function_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", value):
        raise ValueError("should be the name of a function as 'module:name'")
    return value


def _path(value: Any) -> Any:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if not isinstance(value, (str, dict, list)):
        raise ValueError("should be a path, or a mapping of paths")
    for part in parts:
        _path(part)
    return value


def _pipelines(value: Any) -> Any:
    if not isinstance(value, (dict, list)) or not value:
        raise ValueError("should be a list or a mapping of pipelines")
    return value


def _shard(value: Any) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", value) if isinstance(value, str) else None
    parts = [int(part) for part in match.groups()] if match else value
    whole = isinstance(parts, (list, tuple)) and all(type(part) is int for part in parts)
    if not whole or len(parts) != 2 or not 0 <= parts[0] < parts[1]:
        raise ValueError("should be [rank, world] or 'rank/world' with 0 <= rank < world")
    return parts[0], parts[1]


_FUNCTION_SCHEMA = {"type": "string", "pattern": r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$"}
FunctionName: TypeAlias = Annotated[str, AfterValidator(_function_name), WithJsonSchema(_FUNCTION_SCHEMA)]
"""``"module:name"``, which is handed on as it is."""

Function: TypeAlias = Annotated[FunctionName, "handed on as the function itself"]
"""``"module:name"``, in whose place the function is handed on."""

Paths: TypeAlias = Annotated[Any, PlainValidator(_path), WithJsonSchema({"type": ["string", "object", "array"]})]
Pipelines: TypeAlias = Annotated[Any, PlainValidator(_pipelines), WithJsonSchema({"type": ["array", "object"]})]
Shard: TypeAlias = Annotated[
    Any,
    PlainValidator(_shard),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 2, "maxItems": 2},
                {"type": "string", "pattern": r"^\d+/\d+$"},
            ]
        }
    ),
]

LOADER: Keys = MappingProxyType(
    {
        "backend": Key(
            str, "The framework that gets the batches: numpy, torch, tensorflow, jax or a plugin's.", default="numpy"
        ),
        "device": Key(str | None, "The framework's own name of a device, such as cpu or cuda:0."),
        "executor": Key(
            str, "Where batches are computed: auto, inline, threads, processes or a plugin's.", default="auto"
        ),
        "workers": Key(
            Annotated[int, Field(ge=1)] | Literal["auto"],
            "How many of them work at a time; auto: as many as the first batches show to be the fastest.",
            default="auto",
        ),
        "prefetch": Key(
            Annotated[int, Field(ge=0)] | Literal["auto"],
            "How many finished batches may wait, besides one a worker.",
            default="auto",
        ),
        "memory_limit": Key(
            Annotated[int, Field(ge=1)] | str | None,
            "How much memory batches in flight may take where workers are chosen: bytes, or text such as 2GB.",
        ),
        "prefetch_to_device": Key(
            bool | None, "Whether a thread keeps batches on the device; by default where it has memory of its own."
        ),
        "shard": Key(Shard, "Which part of every batch: [rank, world] or 'rank/world'.", default=[0, 1]),
        "narrow": Key(
            Literal["checked", "error"],
            "What becomes of 64-bit values in a framework without them: narrowed where they fit, or refused.",
            default="checked",
        ),
        "timeout": Key(Annotated[float, Field(gt=0)] | None, "How many seconds a batch may take."),
        "on_error": Key(
            Literal["raise", "skip"] | dict[str, Any],
            "What becomes of rows that fail: an error, or left out: skip, or {budget: 0.01, log: skipped.jsonl}.",
            default="raise",
        ),
        "lineage": Key(bool, "Whether every batch says which source rows it holds.", default=False),
    }
)
"""The options of a Loader."""

PIPELINE: Keys = MappingProxyType(
    {
        "source": Key(dict[str, Any], "Where rows come from: its kind, and that kind's keys.", required=True),
        "stages": Key(list[Any], "What happens to the rows, in this order.", default=[]),
    }
)

TOP: Keys = MappingProxyType(
    {
        "plugins": Key(list[str], "Local plugins: files, relative to this one, or modules.", default=[]),
        "pipeline": Key(dict[str, Any], "The source of the rows, and the stages that they go through."),
        "pipelines": Key(dict[str, dict[str, Any]], "Several pipelines by name, instead of one."),
        "loader": Key(dict[str, Any], "How the batches are computed, and which framework gets them.", default={}),
    }
)


def keys_of_stage(stage: type[Any]) -> Keys:
    """Return the fields of a stage's dataclass as keys."""
    hints = _hints(stage)
    keys = {}
    for field in dataclasses.fields(stage):
        made = None if field.default_factory is dataclasses.MISSING else field.default_factory()
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        default = made if field.default is dataclasses.MISSING else field.default
        keys[field.name] = Key(_plain(field.name, hints.get(field.name, Any)), "", required, default)
    return keys


def keys_of_source(factory: Callable[..., Any]) -> tuple[Keys, bool]:
    """Return the parameters of a source's factory as keys, and whether it takes others, too."""
    hints = _hints(factory.__init__ if inspect.isclass(factory) else factory)
    keys = {}
    others = False
    try:
        parameters = inspect.signature(factory).parameters
    except (ValueError, TypeError):  # written in C: only calling it tells
        return {}, True
    for name, parameter in parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            others = True
        elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            required = parameter.default is parameter.empty
            default = None if required else parameter.default
            keys[name] = Key(_plain(name, hints.get(name, Any)), "", required, default)
    return keys, others


def _hints(annotated: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(annotated, include_extras=True)
    except Exception:  # a name that is imported for type checkers only: then any value goes
        return {}


def _plain(name: str, hint: Any) -> Any:
    """Return what may be written in a file for a parameter of that type."""
    if name in ("path", "paths") and hint is Any:
        return Paths
    if name == "pipelines" and hint is Any:
        return Pipelines
    origin = typing.get_origin(hint)
    if hint is Callable or origin is collections.abc.Callable:
        return Function
    if name == "fn":
        return FunctionName
    if inspect.isclass(origin or hint) and issubclass(origin or hint, os.PathLike):
        return str
    if origin in (Union, types.UnionType):
        return functools.reduce(lambda one, other: one | other, (_plain("", part) for part in typing.get_args(hint)))
    return hint


def function_kind(hint: Any) -> Any:
    """Return ``Function`` or ``FunctionName`` if that is what a text stands for, else ``None``."""
    parts = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    return None if str in parts else next((kind for kind in (Function, FunctionName) if kind in parts), None)


def check_value(key: Key, value: Any) -> list[tuple[str, str]]:
    """Return what is wrong with a plain value: the place in it, and what it should be there."""
    return read_value(key, value)[1]


def read_value(key: Key, value: Any) -> tuple[Any, list[tuple[str, str]]]:
    """Return what a plain value stands for, and what is wrong with it."""
    try:
        return adapter_of(key.hint).validate_json(json.dumps(value), strict=True), []
    except ValidationError as exc:
        return None, _said(exc, value)


def check_text(key: Key, text: str) -> tuple[Any, list[tuple[str, str]]]:
    """Return the value that a text from the command line or the environment stands for, and what is wrong with it.

    Lists and mappings are written as in YAML: ``[0, 2]``, ``{budget: 5}``.
    """
    if text.lstrip().startswith(("[", "{")):
        with contextlib.suppress(yaml.YAMLError, ValueError, TypeError):  # no YAML, or dates in it: text like any other
            return read_value(key, yaml.safe_load(text))
    try:
        return adapter_of(key.hint).validate_strings(text), []
    except ValidationError as exc:
        return None, _said(exc, text)


def adapter_of(hint: Any) -> TypeAdapter[Any]:
    """Return the validator of a type; of ``Any`` where pydantic knows nothing of the type."""
    try:
        return TypeAdapter(hint)
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation, PydanticUserError):
        return TypeAdapter(Any)


def _said(exc: ValidationError, value: Any) -> list[tuple[str, str]]:
    """Return what pydantic has to say, one line a place, alternatives of a union together."""
    wanted: dict[str, list[str]] = {}
    found: dict[str, Any] = {}
    for error in exc.errors(include_url=False):
        place, inner = _place(error["loc"], value)
        text = re.sub(r"^(Value error, )?(Input )?(should be )?|, unable to .*", "", error["msg"])
        wanted.setdefault(place, []).append(text)
        found[place] = inner
    return [
        (place, f"should be {' or '.join(dict.fromkeys(texts))}, not {found[place]!r}")
        for place, texts in wanted.items()
    ]


def _place(steps: Iterable[int | str], value: Any) -> tuple[str, Any]:
    """Return where in a value an error is; steps that only name an alternative of a union are left out."""
    place = ""
    for step in steps:
        if isinstance(value, dict) and step in value:
            place, value = f"{place}.{step}", value[step]
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            place, value = f"{place}[{step}]", value[step]
    return place, value
