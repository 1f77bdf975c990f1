"""What has to look at rows before it is known which of them a batch holds."""

from __future__ import annotations

import dataclasses

from batchkit import stages as st
from batchkit.functions import describe_function
from batchkit.pipeline import Pipeline
from batchkit.plan.numbered.placing import Numbering, placed_stages
from batchkit.plan.rows.rowwise import changes_number
from batchkit.sources import GeneratorSource

__all__ = ["first_uncounted"]


def first_uncounted(pipeline: Pipeline, numbering: Numbering | None = None) -> str | None:
    """Return the first of a pipeline, its parts included, that keeps no count of its rows, as messages name it.

    That is a generator, a stage that makes any number of rows of each, or one that goes by lengths.
    """
    numbering = numbering or Numbering()
    start = dataclasses.replace(numbering)
    for part in pipeline.parts:
        found = first_uncounted(part, start)
        if found is not None:
            return found
    if isinstance(pipeline.source, GeneratorSource):
        return f"from_generator({describe_function(pipeline.source.fn)})"
    for one in placed_stages(pipeline, numbering):
        if changes_number(one.stage) or isinstance(one.stage, (st.Pack, st.BucketBatch)):
            return f"stage {one.number} {one.stage.label}"
    return None
