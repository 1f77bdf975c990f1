"""Checking what a config file says, and bringing it into one form."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from batchkit.config.keys import (
    LOADER,
    PIPELINE,
    Function,
    Keys,
    Paths,
    check_value,
    function_kind,
    keys_of_source,
    keys_of_stage,
)
from batchkit.config.problems import Problems
from batchkit.errors import BatchkitError, ConfigError, nearest
from batchkit.functions import resolve_function
from batchkit.pipeline import Pipeline
from batchkit.plugins import Plugins, import_beside, importable
from batchkit.sources import Combination
from batchkit.sources.combined import built_parts, described_parts
from batchkit.stages import Stage

__all__ = ["CheckedPipeline", "Checker", "check_keys", "expand_pipeline", "expand_stages"]


@dataclass(frozen=True, slots=True)
class CheckedPipeline:
    """A pipeline whose every key is valid; the source is not opened yet."""

    place: str
    open_source: Callable[[Sequence[Pipeline]], Any]
    """Called with the pipelines that it combines, which are built from ``parts``."""
    stages: tuple[Stage, ...]
    parts: tuple[CheckedPipeline, ...] = ()


def check_keys(place: str, given: Mapping[str, Any], keys: Keys, problems: Problems, others: bool = False) -> bool:
    """Note every key that is unknown or missing and every value of the wrong type; say whether there were none."""
    before = len(problems.found)
    for name, value in given.items():
        inner = f"{place}.{name}" if place else name
        if name in keys:
            for where, text in check_value(keys[name], value):
                problems.add(inner + where, text)
        elif not others:
            problems.add(inner, f"there is no such key{_meant(name, keys, place)} (valid: {', '.join(keys) or 'none'})")
    for name, key in keys.items():
        if key.required and name not in given:
            problems.add(place, f"the key {name!r} is missing")
    return len(problems.found) == before


def _meant(name: str, keys: Keys, place: str) -> str:
    hint = nearest(name, list(keys))
    if hint or place:
        return hint
    home = next((home for home, inner in (("loader", LOADER), ("pipeline", PIPELINE)) if name in inner), None)
    return f"; it belongs under {home!r}" if home else ""


def expand_pipeline(pipe: Mapping[str, Any], registry: Plugins) -> None:
    """Bring every stage of a pipeline, and of those that it combines, into one form (:func:`expand_stages`)."""
    expand_stages(pipe.get("stages"), registry)
    source = pipe.get("source")
    with contextlib.suppress(BatchkitError):
        for _, part in (
            described_parts(source["pipelines"]) if isinstance(source, dict) and "pipelines" in source else ()
        ):
            expand_pipeline(part, registry)


def expand_stages(stages: Any, registry: Plugins) -> None:
    """Bring every stage into the form ``{verb: {field: value}}``, as far as it can be understood."""
    for index, entry in enumerate(stages if isinstance(stages, list) else ()):
        if isinstance(entry, str):
            entry = stages[index] = {entry: None}
        if isinstance(entry, dict) and len(entry) == 1:
            ((verb, given),) = entry.items()
            with contextlib.suppress(BatchkitError):
                entry[verb] = _arguments(given, keys_of_stage(registry.stage(verb)))


def _arguments(given: Any, keys: Keys) -> Any:
    """Return the arguments of a stage by name; a value alone is that of the first field."""
    if given is None:
        return {}
    first = next(iter(keys), None)
    if first is None:
        return given
    if not isinstance(given, dict) or _is_first(given, first, keys):
        given = {first: given}
    alone = given.get(first)
    if isinstance(alone, str) and not _takes(keys, first, alone) and _takes(keys, first, [alone]):
        given[first] = [alone]
    return given


def _is_first(given: dict[str, Any], first: str, keys: Keys) -> bool:
    """Say whether a mapping is the value of a stage's only field: ``cast: {image: float32}``."""
    named = first in given or any(isinstance(value, dict) for value in given.values())
    return len(keys) == 1 and not named and _takes(keys, first, given)


def _takes(keys: Keys, name: str, value: Any) -> bool:
    return not check_value(keys[name], value)


_Opened: TypeAlias = tuple[Callable[[Sequence[Pipeline]], Any], tuple[CheckedPipeline, ...]]


@dataclass(frozen=True, slots=True)
class Checker:
    """Checks pipelines against the sources and stages that there are."""

    folder: Path
    registry: Plugins
    problems: Problems
    allow_imports: bool

    def pipeline(self, place: str, content: Mapping[str, Any]) -> CheckedPipeline | None:
        """Return what a pipeline says, or ``None`` after noting what is wrong with it."""
        before = len(self.problems.found)
        check_keys(place, content, PIPELINE, self.problems)
        source, stages = content.get("source"), content.get("stages")
        opened = self._source(f"{place}.source", source) if isinstance(source, dict) else None
        made = [
            self._stage(f"{place}.stages[{index}]", entry)
            for index, entry in enumerate(stages if isinstance(stages, list) else ())
        ]
        if opened is None or len(self.problems.found) > before:
            return None
        open_source, parts = opened
        return CheckedPipeline(place, open_source, tuple(stage for stage in made if stage is not None), parts)

    def _source(self, place: str, content: dict[str, Any]) -> _Opened | None:
        kind = content.get("kind")
        if not isinstance(kind, str):
            known = ", ".join(self.registry.names("sources"))
            self.problems.add(f"{place}.kind", f"should name a kind of source ({known}), not {kind!r}")
            return None
        try:
            factory = self.registry.source(kind)
        except BatchkitError as exc:
            self.problems.add(f"{place}.kind", str(exc), exc)
            return None
        keys, others = keys_of_source(factory)
        given = {name: value for name, value in content.items() if name != "kind"}
        valid = check_keys(place, given, keys, self.problems, others)
        if isinstance(factory, type) and issubclass(factory, Combination):
            combined = self._combination(f"{place}.pipelines", factory, given) if given.get("pipelines") else None
            if valid and combined is not None:
                with self._noting(place):  # says what else is wrong before any data are opened
                    combined[0]([Pipeline(None)] * len(combined[1]))
            return combined if valid else None
        if not self._import(place, given, keys) or not valid:
            return None
        for name in _PATHS:
            if name in given:
                given[name] = _rebased(given[name], self.folder, name in keys and keys[name].hint is Paths)

        def open_source(_: Sequence[Pipeline]) -> Any:
            with importable(self.folder):
                return factory(**given)

        return open_source, ()

    def _combination(self, place: str, factory: type[Combination], given: dict[str, Any]) -> _Opened | None:
        """Check the pipelines that are combined."""
        checked: list[CheckedPipeline | None] = []
        try:
            for inner, part in described_parts(given["pipelines"]):
                checked.append(self.pipeline(place + inner, part))
        except ConfigError as exc:
            self.problems.add(place, str(exc), exc)
            return None

        def open_source(pipelines: Sequence[Pipeline]) -> Any:
            following = iter(pipelines)
            return factory(**{**given, "pipelines": built_parts(given["pipelines"], lambda *_: next(following))})

        parts = tuple(part for part in checked if part is not None)
        return (open_source, parts) if len(parts) == len(checked) else None

    def _stage(self, place: str, entry: Any) -> Stage | None:
        if not isinstance(entry, dict) or len(entry) != 1:
            several = isinstance(entry, dict) and len(entry) > 1
            hint = f": write '- ' before {list(entry)[1]!r}, too" if several else ""
            self.problems.add(place, f"should be one verb with its arguments, not {entry!r}{hint}")
            return None
        ((verb, given),) = entry.items()
        place = f"{place}.{verb}"
        try:
            stage = self.registry.stage(verb)
        except BatchkitError as exc:
            self.problems.add(place, str(exc), exc)
            return None
        keys = keys_of_stage(stage)
        if not isinstance(given, dict):
            self.problems.add(place, f"takes {', '.join(keys) or 'no arguments'}, not {given!r}")
            return None
        valid = check_keys(place, given, keys, self.problems)
        if not self._import(place, given, keys) or not valid:
            return None
        if given.get("path") is not None and "path" in keys:
            given["path"] = _rebased(given["path"], self.folder, False)
        with self._noting(place), importable(self.folder):
            return stage.from_arguments(given)  # type: ignore[no-any-return]
        return None

    def _import(self, place: str, given: dict[str, Any], keys: Keys) -> bool:
        """Import the functions that are named, put them where they themselves are wanted; say if all went well."""
        well = True
        for name, value in list(given.items()):
            kind = function_kind(keys[name].hint) if name in keys and isinstance(value, str) else None
            if kind is not None and _takes(keys, name, value):
                function = self._function(f"{place}.{name}", value)
                well = well and function is not None
                if kind is Function:
                    given[name] = function
        return well

    def _function(self, place: str, name: str) -> Callable[..., Any] | None:
        if not self.allow_imports:
            self.problems.add(
                place,
                f"names the function {name}, which would be imported and run. "
                "Leave allow_imports=False (--no-imports) out if you trust the file",
            )
            return None
        module = name.partition(":")[0]
        try:
            import_beside(module, self.folder)
        except ModuleNotFoundError as exc:
            if exc.name is None or not f"{module}.".startswith(f"{exc.name}."):
                self.problems.add(place, f"module {module!r} cannot be imported: {exc}", exc)
            else:
                beside = [file.stem for file in self.folder.glob("*.py")]
                hint = nearest(exc.name, beside)
                self.problems.add(
                    place, f"there is no module {exc.name!r}, neither installed nor in {self.folder}{hint}", exc
                )
            return None
        except (Exception, SystemExit) as exc:
            self.problems.add(place, f"module {module!r} cannot be imported: {type(exc).__name__}: {exc}", exc)
            return None
        with self._noting(place), importable(self.folder):
            return resolve_function(name, "the function")
        return None

    @contextlib.contextmanager
    def _noting(self, place: str) -> Iterator[None]:
        """Turn an error into a problem at a place."""
        try:
            yield
        except BatchkitError as exc:
            self.problems.add(place, str(exc), exc)
        except Exception as exc:  # a plugin's stage
            self.problems.add(place, f"{type(exc).__name__}: {exc}", exc)


_PATHS = ("path", "paths")


def _rebased(path: Any, folder: Path, nested: bool) -> Any:
    """Return paths that do not depend on the current folder; where paths are ``nested``, a list becomes a tuple."""
    if isinstance(path, dict):
        return {name: _rebased(inner, folder, nested) for name, inner in path.items()}
    if isinstance(path, list):
        parts = [_rebased(inner, folder, nested) for inner in path]
        return tuple(parts) if nested else parts
    if not isinstance(path, str) or "://" in path:
        return path
    return str(folder / path)
