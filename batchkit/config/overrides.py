"""What beats a config file: overrides, and before them the environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from batchkit.config.check import check_keys
from batchkit.config.files import Copier
from batchkit.config.keys import LOADER, check_text, read_value
from batchkit.config.problems import Problems
from batchkit.errors import ConfigError, nearest

__all__ = ["loader_options", "override", "parse_assignment"]

_PLAIN = (str, int, float, bool, list, tuple, dict)
_PREFIX = "BATCHKIT_"


def parse_assignment(text: str) -> tuple[str, Any]:
    """Return the key and the value of ``"key=value"``; the value is read as YAML.

    >>> parse_assignment("pipeline.stages[1].batch.size=512")
    ('pipeline.stages[1].batch.size', 512)

    Raises:
        ConfigError: there is no ``=``, or the value is not valid.
    """
    name, equals, value = text.partition("=")
    name = name.strip()
    if not equals or not name:
        raise ConfigError(f"override {text!r} is not of the form key=value, such as loader.workers=4")
    if name.removeprefix("loader.") in LOADER and name.startswith("loader."):
        parsed, wrong = check_text(LOADER[name.removeprefix("loader.")], value)
        for _, problem in wrong:
            raise ConfigError(f"override {name}: {problem}")
        return name, parsed
    try:
        return name, yaml.safe_load(value)
    except (yaml.YAMLError, ValueError) as exc:
        raise ConfigError(f"override {name}: {value!r} is not valid YAML. Put text in quotes: {name}='...'") from exc


def override(content: dict[str, Any], changes: Mapping[str, Any], chosen: str | None, problems: Problems) -> None:
    """Put values to their places in what a config file says; ``pipeline`` is the one that was ``chosen``."""
    for name, value in changes.items():
        steps = _steps(name)
        if steps is None or len(steps) < 2 or steps[0] not in ("pipeline", "pipelines"):
            hint = nearest(name, [f"loader.{key}" for key in LOADER])
            problems.add("", f"override {name!r}: only loader.* and pipeline.* can be overridden{hint}")
            continue
        if steps[0] == "pipeline" and chosen is not None:
            steps = ["pipelines", chosen, *steps[1:]]
        _put(content, steps, Copier(problems).copy(value, f"override {name}"), name, problems)


def _steps(name: str) -> list[str | int] | None:
    """Return the steps of a dotted key.

    >>> _steps("pipeline.stages[1].batch.size")
    ['pipeline', 'stages', 1, 'batch', 'size']
    """
    if not re.fullmatch(r"[^.\[\]]+(\.[^.\[\]]+|\[\d+\])*", name):
        return None
    return [int(index) if index else word for word, index in re.findall(r"([^.\[\]]+)(?=[.\[]|$)|\[(\d+)\]", name)]


def _put(content: Any, steps: list[str | int], value: Any, name: str, problems: Problems) -> None:
    *way, last = steps
    done = ""
    for step in way:
        content = _inner(content, step)
        done += f"[{step}]" if isinstance(step, int) else f".{step}" if done else str(step)
        if content is None:
            problems.add("", f"override {name!r}: there is no {done} to change")
            return
    in_list = isinstance(content, list) and isinstance(last, int) and last < len(content)
    in_dict = isinstance(content, dict) and isinstance(last, str)
    if in_list or in_dict:
        content[last] = value
        problems.overridden.add(f"{done}[{last}]" if in_list else f"{done}.{last}")
    else:
        problems.add("", f"override {name!r}: there is no such place in {done}")


def _inner(content: Any, step: str | int) -> Any:
    if isinstance(step, int):
        return content[step] if isinstance(content, list) and step < len(content) else None
    return content.get(step) if isinstance(content, dict) else None


def loader_options(
    given: Any, environment: Mapping[str, str], changes: Mapping[str, Any], problems: Problems
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the options of the Loader, the later ones winning, and where each of them is from."""
    options: dict[str, Any] = {}
    places: dict[str, str] = {}
    if isinstance(given, dict):
        check_keys("loader", given, LOADER, problems)
        for name in [name for name in given if name in LOADER]:
            options[name], places[name] = read_value(LOADER[name], given[name])[0], f"loader.{name}"
    for name, key in LOADER.items():
        variable = f"{_PREFIX}{name.upper()}"
        text = environment.get(variable, "")
        if text:
            options[name], wrong = check_text(key, text)
            places[name] = variable
            for _, problem in wrong:
                problems.add(variable, problem)
    for name, value in changes.items():
        place = f"override loader.{name}"
        if name not in LOADER:
            problems.add(place, f"there is no such key{nearest(name, list(LOADER))} (valid: {', '.join(LOADER)})")
        elif isinstance(value, _PLAIN):
            options[name], wrong = read_value(LOADER[name], Copier(problems).copy(value, place))
            places[name] = place
            for where, problem in wrong:
                problems.add(place + where, problem)
        elif value is not None:  # an object, such as a Backend: the Loader knows what to make of it
            options[name], places[name] = value, place
    return options, places
