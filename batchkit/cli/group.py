"""The group of all commands: those of plugins besides its own, and what becomes of an error."""

from __future__ import annotations

import contextlib
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import click

from batchkit.errors import BatchkitError, CacheWarning, ConfigError, NarrowingWarning, PipelineError, UnknownNameError
from batchkit.plugins import installed

__all__ = ["TRACEBACK", "Failure", "Interrupted", "NotValid", "PluginGroup", "running"]

TRACEBACK = "batchkit.traceback"
"""The key of click's ``meta`` that says whether tracebacks are wanted."""


class Failure(click.ClickException):
    """The run failed. It is told in a line on stderr, or with its traceback where that was asked for."""

    exit_code = 1

    def __init__(self, error: BatchkitError, context: click.Context) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self._traceback = traceback.format_exception(error) if context.meta.get(TRACEBACK) else None

    def show(self, file: Any = None) -> None:
        """Print the error to stderr."""
        click.echo("".join(self._traceback).rstrip() if self._traceback else self.message, err=True)


class NotValid(Failure):
    """The usage or the config is not valid."""

    exit_code = 2


class Interrupted(click.ClickException):
    """Ctrl-C."""

    exit_code = 130

    def show(self, file: Any = None) -> None:
        """Print one line to stderr."""
        click.echo(self.message, err=True)


@contextlib.contextmanager
def running(context: click.Context) -> Iterator[None]:
    """Count every error as a failure of the run, also those that would otherwise mean a wrong config."""
    try:
        yield
    except BatchkitError as exc:
        raise Failure(exc, context) from exc


class PluginGroup(click.Group):
    """A group that has the commands of plugins besides its own, which win over those of the same name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands; imports every plugin."""
        return sorted({*super().list_commands(ctx), *_plugin_commands()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; imports plugins only if it is none of the own ones."""
        return super().get_command(ctx, cmd_name) or _plugin_commands().get(cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command, and turn what it raises into an exit code."""
        with warnings.catch_warnings():
            show_others = warnings.showwarning

            def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
                if issubclass(category, (NarrowingWarning, CacheWarning)):
                    click.echo(f"Warning: {message}", err=True)
                else:
                    show_others(message, category, *where, **more)

            warnings.showwarning = show
            try:
                return super().invoke(ctx)
            except (ConfigError, UnknownNameError, PipelineError) as exc:
                raise NotValid(exc, ctx) from exc
            except BatchkitError as exc:
                raise Failure(exc, ctx) from exc
            except KeyboardInterrupt:
                raise Interrupted("Interrupted.") from None


def _plugin_commands() -> dict[str, click.Command]:
    commands = installed().commands()
    return {name: command for name, command in commands.items() if isinstance(command, click.Command)}
