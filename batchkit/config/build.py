"""A checked pipeline, opened: its source, or those of its parts, and the stages."""

from __future__ import annotations

from batchkit.config.check import CheckedPipeline
from batchkit.config.problems import Problems
from batchkit.errors import BatchkitError, PipelineError, SourceError
from batchkit.pipeline import Pipeline

__all__ = ["built"]


def built(checked: CheckedPipeline, problems: Problems) -> Pipeline:
    """Return the pipeline, after those that it combines.

    Raises:
        ConfigError: an argument is wrong, or a stage cannot stand where it would.
        SourceError: the data cannot be read.
    """
    parts = [built(part, problems) for part in checked.parts]
    place = checked.place
    try:
        pipe = Pipeline(checked.open_source(parts))
    except PipelineError as exc:
        problems.add(f"{place}.source", str(exc), exc)
    except BatchkitError:
        raise
    except Exception as exc:
        raise SourceError(f"{problems.subject}: {place}.source failed: {type(exc).__name__}: {exc}") from exc
    problems.check()
    for index, stage in enumerate(checked.stages):
        try:
            pipe = pipe.apply(stage)
        except PipelineError as exc:
            problems.add(f"{place}.stages[{index}].{stage.verb}", str(exc), exc)
            problems.check()
    return pipe
