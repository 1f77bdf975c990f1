"""One plugin: importing it, and asking it what it offers."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from types import MappingProxyType, ModuleType
from typing import Any, TypeAlias

import pluggy

from batchkit import hookspecs
from batchkit.errors import BackendError

__all__ = ["HOOKS", "KINDS", "Candidate", "Offers", "closest", "reason"]

KINDS: Mapping[str, str] = MappingProxyType(
    {"backends": "backend", "sources": "source", "stages": "stage", "executors": "executor", "commands": "command"}
)
"""What a plugin may offer: the word in the hook's name, and the word for one of them."""

HOOKS = (*(f"batchkit_{kind}" for kind in KINDS), "batchkit_problem")

Offers: TypeAlias = Mapping[str, Mapping[str, Any]]
"""What a plugin offers: by the word in the hook's name, then by name."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plugin that was found, but not imported; ``str()`` is how messages name it."""

    name: str
    origin: str
    version: str | None
    load: Callable[[], object]
    mend: str
    is_local: bool = False

    def __str__(self) -> str:
        return f"plugin {self.name!r} ({' '.join(filter(None, (self.origin, self.version)))})"

    def offers(self) -> Offers:
        """Import the plugin and return what it offers.

        Raises:
            BackendError: names the plugin, where it is from, what is wrong with it, and the mend.
        """
        hooks = self._hooks()
        return {kind: _named(self, kind, _call(self, hooks, f"batchkit_{kind}")) for kind in KINDS}

    def problem(self) -> str | None:
        """Return why the plugin says that it cannot work here; errors as for :meth:`offers`."""
        return "; ".join(str(problem) for problem in _call(self, self._hooks(), "batchkit_problem")) or None

    def _hooks(self) -> Any:
        """Import the plugin and return what calls its hooks, whose names and arguments are then known to be right."""
        try:
            plugin = self.load()
        except (Exception, SystemExit) as exc:
            raise BackendError(f"{self} cannot be imported: {reason(exc)}. {self.mend}") from exc
        manager = pluggy.PluginManager(hookspecs.GROUP)
        manager.add_hookspecs(hookspecs)
        try:
            manager.register(plugin, self.name)
        except pluggy.PluginValidationError as exc:
            hook = next((hook for hook in HOOKS if hook in str(exc)), HOOKS[0])
            raise BackendError(f"{self}: {hook}() has the wrong arguments. Write: {_signature(hook)}") from exc
        callers = manager.get_hookcallers(plugin) or []
        for caller in callers:
            if not caller.has_spec():
                raise BackendError(f"{self}: there is no hook {caller.name!r}{_hook_hint(caller.name)}")
        for name in _unmarked(plugin):
            raise BackendError(f"{self}: {name}() is not marked. Put @batchkit.hookimpl above it")
        if not callers:
            raise BackendError(f"{self} offers nothing. Mark one of {', '.join(HOOKS)} with @batchkit.hookimpl")
        return manager.hook


def _call(candidate: Candidate, hooks: Any, hook: str) -> list[Any]:
    try:
        return getattr(hooks, hook)()  # type: ignore[no-any-return]
    except (Exception, SystemExit) as exc:
        raise BackendError(f"{candidate}: {hook}() failed: {reason(exc)}. {candidate.mend}") from exc


def _named(candidate: Candidate, kind: str, results: Sequence[Any]) -> dict[str, Any]:
    """Check what a hook returned, and return it by name."""
    hook = f"batchkit_{kind}"
    named: dict[str, Any] = {}
    for result in results:
        if kind == "commands" and isinstance(result, (list, tuple)):
            result = {getattr(command, "name", None): command for command in result}
        if not isinstance(result, Mapping):
            raise BackendError(f"{candidate}: {hook}() gave a {type(result).__name__}. Write: {_signature(hook)}")
        for name, offer in result.items():
            valid = inspect.isclass(offer) and is_dataclass(offer) if kind == "stages" else callable(offer)
            if not isinstance(name, str) or not valid:
                raise BackendError(f"{candidate}: {hook}() gave {name!r}: {offer!r}. Write: {_signature(hook)}")
        named.update(result)
    return named


def _signature(hook: str) -> str:
    """Return how a hook is written.

    >>> _signature("batchkit_backends")
    'def batchkit_backends() -> Mapping[str, Callable[[], Any]]'
    """
    return f"def {hook}() -> {getattr(hookspecs, hook).__annotations__['return']}"


def _hook_hint(name: str) -> str:
    meant = closest(name, HOOKS)
    return f"; did you mean {meant!r}? Write: {_signature(meant)}" if meant else f" (valid: {', '.join(HOOKS)})"


def _unmarked(plugin: object) -> list[str]:
    """Return the functions of a module that look like hooks, but that nothing would call."""
    if not isinstance(plugin, ModuleType):
        return []
    return [
        name
        for name, value in vars(plugin).items()
        if inspect.isfunction(value)
        and value.__module__ == plugin.__name__
        and not hasattr(value, f"{hookspecs.GROUP}_impl")
        and name.startswith("batchkit_")
        and closest(name, HOOKS, 0.9)
    ]


def closest(name: str, known: Sequence[str], cutoff: float = 0.6) -> str | None:
    """Return the known name that comes nearest to a mistyped one.

    >>> closest("tensorflwo", ["torch", "tensorflow"])
    'tensorflow'
    """
    return next(iter(difflib.get_close_matches(name, known, 1, cutoff)), None)


def reason(exc: BaseException) -> str:
    """Return how a message names the cause of a failure."""
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
