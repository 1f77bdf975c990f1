"""Everything that can be asked for by name."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from batchkit.backends import Backend, NumpyBackend
from batchkit.errors import BackendError, BatchkitError, UnknownNameError
from batchkit.plugins.candidate import KINDS, Candidate, Offers, closest, reason
from batchkit.plugins.discovery import discover, local_candidate
from batchkit.plugins.identity import PROJECT, version, wrong_package

__all__ = ["PluginInfo", "Plugins", "installed"]

_OWN: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {"backends": {name: f"batchkit-{name}" for name in ("jax", "tensorflow", "torch")}}
)
"""The distributions to install for what this project's own plugins offer."""

_SHORT: Mapping[str, str] = MappingProxyType({"tf": "tensorflow", "keras": "tensorflow", "np": "numpy", "pt": "torch"})
"""What frameworks are called for short."""


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """What ``batchkit plugins`` says of one plugin.

    ``offers`` has the names under the hook's word: ``{"backends": ("torch",)}``; ``origin`` is
    the distribution or the file; ``problem`` says what cannot be used and why.
    """

    name: str
    origin: str
    offers: Mapping[str, tuple[str, ...]]
    problem: str | None = None
    version: str | None = None


@dataclass(frozen=True, slots=True)
class _Seen:
    """A plugin after the attempt to import it."""

    candidate: Candidate
    offers: Offers
    problem: str | None
    broken: bool


@dataclass(frozen=True, slots=True)
class Plugins:
    """Everything that can be asked for by name: what batchkit brings along, what installed and local plugins offer."""

    local: tuple[Candidate, ...] = ()

    def with_local(
        self, paths: str | os.PathLike[str] | Sequence[str], base_dir: str | os.PathLike[str] = "."
    ) -> Plugins:
        """Return plugins with local ones besides, which win over all others.

        They are imported at the first look-up, or by :meth:`load_local`.

        Args:
            paths: files (``"./my_plugin.py"``) or importable modules (``"my_project.plugin"``); or just one.
            base_dir: the folder that relative files are in; modules are looked for there, too.
        """
        base = Path(base_dir).resolve()
        several = [paths] if isinstance(paths, (str, os.PathLike)) else paths
        return Plugins((*self.local, *(local_candidate(os.fspath(path), base) for path in several)))

    def load_local(self) -> None:
        """Import the local plugins now.

        Raises:
            BackendError: one of them is not there, cannot be imported, or has no valid hooks.
        """
        for candidate in self.local:
            candidate.offers()

    def backend(self, name: str) -> Backend:
        """Return a new backend of that name.

        Raises:
            UnknownNameError: nobody offers it; says what to install, or the nearest name.
            BackendError: the plugin that offers it is broken, or cannot work here.
        """
        candidate, factory = self._find("backends", name)
        if candidate is None:
            return factory()  # type: ignore[no-any-return]
        problem = candidate.problem()
        if problem:
            raise BackendError(f"backend {name!r} of {candidate} cannot work here: {problem}")
        try:
            backend = factory()
        except BatchkitError:
            raise
        except Exception as exc:
            why = f"{reason(exc)}. {candidate.mend}"
            raise BackendError(f"backend {name!r} of {candidate} did not start: {why}") from exc
        missing = [part for part in _protocol_parts(Backend) if not hasattr(backend, part)]
        if missing:
            raise BackendError(
                f"backend {name!r} of {candidate} is a {type(backend).__name__} without {', '.join(missing)}: "
                "give it everything that batchkit.backends.Backend lists"
            )
        return backend  # type: ignore[no-any-return]

    def executor(self, name: str) -> Callable[..., Any]:
        """Return the factory of that executor, which is called with ``workers=``; errors as for :meth:`backend`."""
        return self.offer("executors", name)  # type: ignore[no-any-return]

    def source(self, kind: str) -> Callable[..., Any]:
        """Return the factory of that kind of source, which is called with keywords; errors as for :meth:`backend`."""
        return self.offer("sources", kind)  # type: ignore[no-any-return]

    def stage(self, verb: str) -> type[Any]:
        """Return the dataclass of that stage; errors as for :meth:`backend`."""
        return self.offer("stages", verb)  # type: ignore[no-any-return]

    def offer(self, kind: str, name: str) -> Any:
        """Return what is offered of ``"backends"``, ``"sources"``, ``"stages"`` or ``"executors"`` under a name.

        Nothing is started: of a backend it is the factory. Errors as for :meth:`backend`.
        """
        return self._find(kind, name)[1]

    def names(self, kind: str) -> list[str]:
        """Return all names of ``"backends"``, ``"sources"``, ``"stages"`` or ``"executors"``; imports every plugin."""
        return sorted(_by_name(kind, self._survey()))

    def commands(self) -> Mapping[str, Any]:
        """Return the click commands of all plugins by name; a broken plugin has none."""
        return {name: command for name, (_, command) in _by_name("commands", self._survey()).items()}

    def found(self) -> list[PluginInfo]:
        """Return every plugin, batchkit itself first, with what it offers and what is wrong; imports them all."""
        survey = self._survey()
        winners = {kind: _by_name(kind, survey) for kind in KINDS}
        own = {kind: tuple(offers) for kind in KINDS if (offers := _built_in(kind))}
        infos = [PluginInfo("batchkit", PROJECT, own, wrong_package(), version())]
        for seen in survey:
            candidate = seen.candidate
            problems = [seen.problem] if seen.problem else []
            for kind, offers in seen.offers.items():
                for name in offers:
                    winner = winners[kind][name][0]
                    if winner is not candidate:
                        problems.append(f"{KINDS[kind]} {name!r} is taken from {winner or 'batchkit itself'} instead")
            offered = {kind: tuple(offers) for kind, offers in seen.offers.items() if offers}
            problem = "; ".join(problems) or None
            infos.append(PluginInfo(candidate.name, candidate.origin, offered, problem, candidate.version))
        return infos

    def _survey(self) -> list[_Seen]:
        """Try to import every plugin: local ones first, then the installed ones."""
        survey = []
        for candidate in (*self.local, *discover(tuple(sys.path))):
            try:
                survey.append(_Seen(candidate, candidate.offers(), candidate.problem(), broken=False))
            except BackendError as exc:
                survey.append(_Seen(candidate, {}, str(exc), broken=True))
        return survey

    def _find(self, kind: str, name: str) -> tuple[Candidate | None, Any]:
        """Return by which plugin (``None``: batchkit) a name is offered, and what; imports as few as possible."""
        for candidate in self.local:
            if name in (offers := candidate.offers()[kind]):
                return candidate, offers[name]
        if name in (own := _built_in(kind)):
            return None, own[name]
        for candidate in discover(tuple(sys.path)):
            if candidate.name == name and name in (offers := candidate.offers()[kind]):
                return candidate, offers[name]
        survey = self._survey()
        found = _by_name(kind, survey)
        if name not in found:
            # Whoever reads the error may install what is missing and try again in this process.
            discover.cache_clear()
            raise UnknownNameError(_unknown(kind, name, found, survey))
        return found[name]


def installed() -> Plugins:
    """Return the plugins of this environment; imports none of them."""
    return Plugins()


def _processes(**options: Any) -> Any:
    from batchkit.executors import ProcessExecutor  # imports what starts processes

    return ProcessExecutor(**options)


def _built_in(kind: str) -> Mapping[str, Any]:
    # Imported here: whoever looks a backend up needs neither the sources nor the executors.
    if kind == "backends":
        return {"numpy": NumpyBackend}
    if kind == "executors":
        from batchkit.executors import AutoExecutor, InlineExecutor, ThreadExecutor

        return {
            "auto": AutoExecutor,
            "inline": InlineExecutor,
            "processes": _processes,
            "threads": ThreadExecutor,
        }
    if kind == "sources":
        from batchkit.sources import SOURCES

        return SOURCES
    if kind == "stages":
        from batchkit.stages import STAGES

        return STAGES
    return {}


def _by_name(kind: str, survey: Sequence[_Seen]) -> dict[str, tuple[Candidate | None, Any]]:
    """Return every name with the plugin that it is taken from, in the order that the module's docstring gives."""
    named: dict[str, tuple[Candidate | None, Any]] = {}
    local = [seen for seen in survey if seen.candidate.is_local]
    others = [seen for seen in survey if not seen.candidate.is_local]
    for seen in local:
        _claim(named, seen.candidate, seen.offers.get(kind, {}))
    _claim(named, None, _built_in(kind))
    for seen in others:
        name = seen.candidate.name
        _claim(named, seen.candidate, {its: offer for its, offer in seen.offers.get(kind, {}).items() if its == name})
    for seen in others:
        _claim(named, seen.candidate, seen.offers.get(kind, {}))
    return named


def _claim(
    named: dict[str, tuple[Candidate | None, Any]], candidate: Candidate | None, offers: Mapping[str, Any]
) -> None:
    for name, offer in offers.items():
        named.setdefault(name, (candidate, offer))


def _unknown(kind: str, name: str, named: Mapping[str, tuple[Candidate | None, Any]], survey: Sequence[_Seen]) -> str:
    """Say that nobody offers a name, which one may have been meant, and what to install."""
    unusable = [seen.candidate for seen in survey if seen.problem]
    found = sorted(its for its, (candidate, _) in named.items() if candidate not in unusable)
    own = _OWN.get(kind, {})
    meant = name if name in own else _SHORT.get(name.lower()) or closest(name.lower(), [*named, *own])
    typo = f"; did you mean {meant!r}?" if meant and meant != name else ""
    mend = f" pip install {own[meant]}" if meant and meant in own and meant not in named else ""
    link = ":" if mend and not typo else ""
    left_out = "".join(f". Left out: {_named_problem(seen)}" for seen in survey if seen.problem)
    return f"no {KINDS[kind]} {name!r}{typo}{link}{mend} (found: {', '.join(found) or 'none'}){left_out}"


def _named_problem(seen: _Seen) -> str:
    return f"{seen.problem}" if seen.broken else f"{seen.candidate}: {seen.problem}"


def _protocol_parts(protocol: type) -> list[str]:
    """Return the methods and attributes that a protocol class asks for."""
    names = {*vars(protocol), *getattr(protocol, "__annotations__", {})}
    return sorted(name for name in names if not name.startswith("_"))
