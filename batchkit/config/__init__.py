"""Config files: what a YAML, TOML or JSON file says, as a Loader.

An override beats the environment (``BATCHKIT_BACKEND=jax``), which beats the file, which
beats the Loader's own defaults. ``docs/config.md`` describes what may be written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from batchkit.config.build import built
from batchkit.config.check import Checker, check_keys, expand_pipeline
from batchkit.config.files import ConfigFile, from_mapping, read
from batchkit.config.keys import TOP
from batchkit.config.overrides import loader_options, override, parse_assignment
from batchkit.config.problems import ConfigNotFoundError, Problems
from batchkit.config.schema import json_schema
from batchkit.errors import BatchkitError, ConfigError, PipelineError, UnknownNameError, nearest
from batchkit.loader import Loader
from batchkit.pipeline import Pipeline
from batchkit.plugins import Plugins, installed

__all__ = ["ConfigNotFoundError", "json_schema", "load", "load_pipeline", "parse_assignment"]


def load(
    config: str | os.PathLike[str] | Mapping[str, Any],
    *,
    pipeline: str | None = None,
    allow_imports: bool = True,
    overrides: Mapping[str, Any] | None = None,
    **loader_overrides: Any,
) -> Loader:
    """Return the Loader that a config file describes.

    A file that names functions or plugins imports them, and so runs code; any other cannot.

    Args:
        config: a file named ``.yaml``, ``.yml``, ``.toml`` or ``.json``, or a dict of the same shape.
        pipeline: which one of ``pipelines``, where the file has several.
        allow_imports: ``False`` refuses a file that names functions or plugins.
        overrides: values by place: ``{"pipeline.source.path": "x.npy", "pipeline.stages[1].batch.size": 512}``.
        loader_overrides: options of the Loader: ``backend="jax"``; ``None`` leaves what is there.

    Raises:
        ConfigNotFoundError: there is no such file.
        ConfigError: names everything that is wrong with the file, the environment and the overrides.
        UnknownNameError: there is no backend or executor of the name in ``loader_overrides``.
        SourceError: the data cannot be read.
    """
    made, registry, options, where = _read(config, pipeline, allow_imports, {**(overrides or {})}, loader_overrides)
    try:
        return Loader(made, plugins=registry, **options)
    except PipelineError as exc:
        raise ConfigError(f"{where}: {exc}") from exc


def load_pipeline(
    config: str | os.PathLike[str] | Mapping[str, Any],
    *,
    pipeline: str | None = None,
    allow_imports: bool = True,
    overrides: Mapping[str, Any] | None = None,
) -> Pipeline:
    """Return the pipeline that a config file describes; what the file says of the loader is not looked at.

    The same as :func:`load` otherwise. No framework is imported, whatever backend the file names.

    Raises:
        ConfigNotFoundError: there is no such file.
        ConfigError: names everything that is wrong with the pipeline.
        SourceError: the data cannot be read.
    """
    return _read(config, pipeline, allow_imports, {**(overrides or {})}, None)[0]


def _read(
    config: Any,
    pipeline: str | None,
    allow_imports: bool,
    changes: dict[str, Any],
    loader_overrides: Mapping[str, Any] | None,
) -> tuple[Pipeline, Plugins, dict[str, Any], str]:
    """Return the pipeline, what knows the plugins, the loader's options, and how messages name the place.

    Without ``loader_overrides`` the loader's options are not looked at.
    """
    file = from_mapping(config) if isinstance(config, Mapping) else read(config)
    loader_changes = {
        name.removeprefix("loader."): changes.pop(name) for name in [*changes] if name.startswith("loader.")
    }
    problems = Problems(file.name)
    check_keys("", file.content, TOP, problems)
    plugins = _local_plugins(file, allow_imports, problems)
    registry = installed().with_local(plugins, file.folder)
    chosen = _chosen(file.content, pipeline, problems)
    _expand(file.content, registry)
    override(file.content, changes, chosen, problems)
    _expand(file.content, registry)  # an override may have brought a stage in another form
    checker = Checker(file.folder, registry, problems, allow_imports)
    checked = {place: checker.pipeline(place, content) for place, content in _pipelines(file.content).items()}
    options: dict[str, Any] = {}
    if loader_overrides is not None:
        loader_changes.update(loader_overrides)
        options, places = loader_options(file.content.get("loader"), os.environ, loader_changes, problems)
        _check_names(options, places, registry, problems)
    problems.check()
    place = "pipeline" if chosen is None else f"pipelines.{chosen}"
    chosen_pipeline = checked[place]
    assert chosen_pipeline is not None  # or a problem would have been noted
    return built(chosen_pipeline, problems), registry, options, f"{file.name}: {place}"


def _local_plugins(file: ConfigFile, allow_imports: bool, problems: Problems) -> list[str]:
    """Import the plugins that a file names, and return those that work."""
    usable = []
    given = file.content.get("plugins")
    for index, path in enumerate(given if isinstance(given, list) else ()):
        if not isinstance(path, str):
            continue
        if not allow_imports:
            problems.lacks_plugins = True
            problems.add(
                f"plugins[{index}]",
                f"names the plugin {path}, which would be imported and run. "
                "Leave allow_imports=False (--no-imports) out if you trust the file",
            )
            continue
        try:
            installed().with_local([path], file.folder).load_local()
        except BatchkitError as exc:
            problems.add(f"plugins[{index}]", str(exc), exc)
            problems.lacks_plugins = True
        else:
            usable.append(path)
    return usable


def _pipelines(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the pipelines of a file by their place in it."""
    several = content.get("pipelines")
    places = {f"pipelines.{name}": pipe for name, pipe in several.items()} if isinstance(several, dict) else {}
    places["pipeline"] = content.get("pipeline")
    return {place: pipe for place, pipe in places.items() if isinstance(pipe, dict)}


def _expand(content: Mapping[str, Any], registry: Plugins) -> None:
    for pipe in _pipelines(content).values():
        expand_pipeline(pipe, registry)


def _chosen(content: Mapping[str, Any], wanted: str | None, problems: Problems) -> str | None:
    """Return the name of the pipeline to build, ``None`` where the file has just one without a name."""
    if ("pipeline" in content) is ("pipelines" in content):
        problems.add(
            "",
            "give either 'pipeline' or 'pipelines', "
            + ("not both" if "pipeline" in content else "one of them is needed"),
        )
        return None
    if "pipeline" in content:
        if wanted is not None:
            problems.add("", f"pipeline {wanted!r} was asked for, but the file has only one, without a name")
        return None
    names = list(content["pipelines"]) if isinstance(content["pipelines"], dict) else []
    if wanted is None and len(names) == 1:
        return str(names[0])
    if wanted is None:
        problems.add(
            "pipelines", f"choose one by name with pipeline= (--pipeline): {', '.join(names) or 'there is none'}"
        )
    elif wanted not in names:
        problems.add(
            "pipelines", f"there is no pipeline {wanted!r}{nearest(wanted, names)} (there are: {', '.join(names)})"
        )
    return wanted


def _check_names(options: Mapping[str, Any], places: Mapping[str, str], registry: Plugins, problems: Problems) -> None:
    """Note a backend or executor that nobody offers; one from an override is the Loader's to refuse."""
    for option, kind in (("backend", "backends"), ("executor", "executors")):
        name = options.get(option)
        if isinstance(name, str) and not places[option].startswith("override"):
            try:
                registry.offer(kind, name)
            except UnknownNameError as exc:
                problems.add(places[option], str(exc), exc)
            except BatchkitError:
                pass  # broken: the Loader says so, with the cause
