"""Reading a YAML, TOML or JSON file into plain values; nothing in it can run code."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import yaml

from batchkit.config.problems import ConfigNotFoundError, Problems
from batchkit.errors import ConfigError, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["ConfigFile", "Copier", "from_mapping", "read"]

MOST_VALUES = 100_000
"""More are refused: a few lines of YAML aliases can stand for billions."""

DEEPEST = 50


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What a config file says: ``name`` is for messages, relative paths start at ``folder``."""

    name: str
    folder: Path
    content: dict[str, Any]


def read(path: str | os.PathLike[str]) -> ConfigFile:
    """Return what a file says, as dicts, lists, text, numbers, booleans and ``None``.

    Raises:
        ConfigNotFoundError: there is no such file.
        ConfigError: it cannot be read or parsed, is empty, is no mapping, or has a key twice.
    """
    name = os.fspath(path)
    file = Path(name)
    if file.suffix.lower() not in _PARSERS:
        raise ConfigError(
            f"{name}: a config file is named {', '.join(_PARSERS)}, not {file.suffix or 'without a suffix'!r}"
        )
    problems = Problems(name)
    try:
        content = _PARSERS[file.suffix.lower()](_text(file, name), problems)
    except ConfigError:
        raise
    except Exception as exc:  # whatever a parser raises says that the file is damaged
        raise ConfigError(f"{name} is not valid {file.suffix[1:].upper()}: {_parser_message(exc)}") from exc
    problems.check()
    return _checked(name, file.resolve().parent, content, problems)


def from_mapping(content: Mapping[str, Any]) -> ConfigFile:
    """Return a dict as if it had been read from a file in the current folder; errors as for :func:`read`."""
    return _checked("the config", Path.cwd(), dict(content), Problems("the config"))


def _checked(name: str, folder: Path, content: Any, problems: Problems) -> ConfigFile:
    if content is None or content == {}:
        raise ConfigError(f"{name} is empty: it needs at least 'pipeline' with a 'source'")
    if not isinstance(content, dict):
        raise ConfigError(f"{name} must be a mapping with the key 'pipeline', not a {type(content).__name__}")
    copied = Copier(problems).copy(content, "")
    problems.check()
    return ConfigFile(name, folder, copied)


def _text(file: Path, name: str) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as exc:
        folder = file.absolute().parent
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        hint = nearest(file.name, names)
        if name.startswith("~"):
            hint = "; '~' is not expanded: use os.path.expanduser()"
        raise ConfigNotFoundError(f"there is no config file {name!r} (from {os.getcwd()}){hint}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{name} is not text in UTF-8: byte {exc.start} is {exc.object[exc.start]:#x}") from exc
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{name} cannot be read: {exc}") from exc


class Copier:
    """Copies plain values, so that what YAML aliases share can be changed in one place alone."""

    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.values = 0

    def copy(self, value: Any, place: str, depth: int = 0) -> Any:
        """Return a value made of dicts, lists, text, numbers, booleans and ``None``; note what is not."""
        self.values += 1
        if self.values > MOST_VALUES or depth > DEEPEST:
            raise ConfigError(
                f"{self.problems.subject} has more than {MOST_VALUES} values or {DEEPEST} levels "
                "(an alias counts each time): put data into files of their own"
            )
        if isinstance(value, dict):
            copied = {}
            for key, inner in value.items():
                if isinstance(key, str):
                    copied[key] = self.copy(inner, f"{place}.{key}" if place else key, depth + 1)
                else:
                    self.problems.add(place, f"the key {key!r} is not text: put it in quotes")
            return copied
        if isinstance(value, (list, tuple)):
            return [self.copy(inner, f"{place}[{index}]", depth + 1) for index, inner in enumerate(value)]
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        if isinstance(value, np.integer):
            return int(value)
        if value is not None and not isinstance(value, (str, int, float)):
            self.problems.add(place, f"{value} is a {type(value).__name__}: if it is meant as text, put it in quotes")
            return str(value)
        return value


def _yaml(text: str, problems: Problems) -> Any:
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _find_twice(node, problems, set())
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _find_twice(node: yaml.Node, problems: Problems, visited: set[int]) -> None:
    """Note every key that a mapping has twice; YAML itself would silently keep the last one."""
    if id(node) in visited or isinstance(node, yaml.ScalarNode):
        return
    visited.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _find_twice(item, problems, visited)
        return
    seen: dict[tuple[str, str], int] = {}
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode):
            line = key.start_mark.line + 1
            name = (key.tag, key.value)
            if name in seen:
                problems.add(
                    f"line {line}", f"the key {key.value!r} is already in line {seen[name]}: take one of them out"
                )
            seen.setdefault(name, line)
        _find_twice(value, problems, visited)


def _json(text: str, problems: Problems) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        names = [name for name, _ in pairs]
        for name in content:
            if names.count(name) > 1:
                problems.add("", f"the key {name!r} is there {names.count(name)} times in one object: keep one of them")
        return content

    return json.loads(text, object_pairs_hook=unique)


def _toml(text: str, problems: Problems) -> Any:
    return tomllib.loads(text)  # refuses a key that is there twice


_PARSERS: Mapping[str, Callable[[str, Problems], Any]] = MappingProxyType(
    {".yaml": _yaml, ".yml": _yaml, ".toml": _toml, ".json": _json}
)


def _parser_message(exc: Exception) -> str:
    if isinstance(exc, yaml.MarkedYAMLError) and exc.problem_mark is not None:
        mark = exc.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {exc.problem}"
    if isinstance(exc, RecursionError):
        return "it is nested too deeply"
    return str(exc) or type(exc).__name__
