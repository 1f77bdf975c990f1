"""What is wrong with a config, collected so that everything is reported together."""

from __future__ import annotations

from dataclasses import dataclass, field

from batchkit.errors import ConfigError, UnknownNameError

__all__ = ["ConfigNotFoundError", "Problems"]


class ConfigNotFoundError(ConfigError, FileNotFoundError):
    """There is no config file at the path that was given."""


@dataclass
class Problems:
    """The problems of one config; ``subject`` is how messages name it."""

    subject: str
    overridden: set[str] = field(default_factory=set)
    """The places whose value is not from the file."""
    lacks_plugins: bool = False
    """Whether plugins cannot be used, so that a name which nobody offers may be one of theirs, and no other error."""
    found: list[str] = field(default_factory=list)
    cause: BaseException | None = None

    def add(self, place: str, text: str, cause: BaseException | None = None) -> None:
        """Note a problem; ``place`` is a path such as ``pipeline.stages[1].batch.size``."""
        if self.lacks_plugins and isinstance(cause, UnknownNameError):
            return
        changed = any(place == given or place.startswith((f"{given}.", f"{given}[")) for given in self.overridden)
        where = f"{place} (override)" if changed else place
        self.found.append(f"{where}: {text}" if where else text)
        self.cause = self.cause or cause

    def check(self) -> None:
        """Do nothing if there are none.

        Raises:
            ConfigError: has all of them, numbered if there are several.
        """
        if not self.found:
            return
        if len(self.found) == 1:
            raise ConfigError(f"{self.subject}: {self.found[0]}") from self.cause
        lines = "".join(f"\n  {number}. {text}" for number, text in enumerate(self.found, 1))
        raise ConfigError(f"{self.subject} has {len(self.found)} errors:{lines}") from self.cause
