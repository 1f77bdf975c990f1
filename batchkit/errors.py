"""Every error that batchkit raises of its own.

::

    BatchkitError
    ├── PipelineError            (ValueError)         a description that cannot be right
    │   └── PipelineTypeError    (TypeError)          ... because an argument has the wrong type
    ├── SchemaError              (ValueError)         data whose structure, dtype or shape does not fit
    │   └── MissingLeafError     (KeyError)           ... because a leaf of that name is not there
    ├── SourceError                                   data that cannot be read
    │   ├── SourceNotFoundError  (FileNotFoundError)  ... because the file is not there
    │   └── CorruptSourceError   (ValueError)         ... because the file is damaged or not what it says
    ├── StageError                                    a user's function failed, or broke its promise
    ├── WorkerError              (RuntimeError)       a worker died or hung
    ├── BackendError                                  a framework cannot take what it was given
    │   ├── UnknownNameError     (ValueError)         no backend, executor, source or stage of that name
    │   └── NarrowingError       (ValueError)         a value does not fit the dtype the framework has
    ├── ConfigError              (ValueError)         a configuration file or override that is not valid
    └── StateError               (ValueError)         a state that belongs to another pipeline, or is damaged

An error says what, where, and the mend. A cause is chained, so that a user's own
traceback stays visible. Warnings: :class:`NarrowingWarning`, :class:`CacheWarning`.
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "BatchkitError",
    "CacheWarning",
    "ConfigError",
    "CorruptSourceError",
    "MissingLeafError",
    "NarrowingError",
    "NarrowingWarning",
    "PipelineError",
    "PipelineTypeError",
    "SchemaError",
    "SourceError",
    "SourceNotFoundError",
    "StageError",
    "StateError",
    "UnknownNameError",
    "WorkerError",
    "nearest",
]


class BatchkitError(Exception):
    """The root of every error that batchkit raises of its own."""

    def __str__(self) -> str:
        # KeyError prints the repr of its message; a message is for people.
        return str(self.args[0]) if self.args else ""


class PipelineError(BatchkitError, ValueError):
    """A pipeline was described in a way that cannot be right."""


class PipelineTypeError(PipelineError, TypeError):
    """A pipeline was described with an argument of the wrong type."""


class SchemaError(BatchkitError, ValueError):
    """Data whose structure, dtype or shape does not fit."""


class MissingLeafError(SchemaError, KeyError):
    """A leaf was asked for that is not there."""


class SourceError(BatchkitError):
    """Data could not be read."""


class SourceNotFoundError(SourceError, FileNotFoundError):
    """A file of the data is not there."""


class CorruptSourceError(SourceError, ValueError):
    """A file of the data is damaged, or is not what it says it is."""


class StageError(BatchkitError):
    """A user's function failed, or returned what it may not."""


class WorkerError(BatchkitError, RuntimeError):
    """A worker died or hung."""


class BackendError(BatchkitError):
    """A framework cannot take what it was given."""


class UnknownNameError(BackendError, ValueError):
    """No backend, executor, source or stage has that name."""


class NarrowingError(BackendError, ValueError):
    """A value does not fit the dtype that the framework has for it."""


class ConfigError(BatchkitError, ValueError):
    """A configuration file, an environment variable or an override is not valid."""


class StateError(BatchkitError, ValueError):
    """A state belongs to another pipeline or data set, or is damaged."""


class NarrowingWarning(UserWarning):
    """A framework keeps less precision than the data has (float64 as float32)."""


class CacheWarning(UserWarning):
    """A cache freezes what is random before it, or does not hold what it could."""


def nearest(name: str, known: list[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known name, or an empty string.

    >>> nearest("suffle", ["shuffle", "batch"])
    "; did you mean 'shuffle'?"
    """
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
