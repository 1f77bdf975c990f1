"""The verbs on several pipelines: concat, zip, interleave, mix."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec

from batchkit.errors import PipelineTypeError
from batchkit.pipeline import Pipeline
from batchkit.sources import Concat, Interleave, Mix, Zip
from batchkit.tree import Tree

__all__ = ["concat", "interleave", "mix", "zip"]

P = ParamSpec("P")


def _of_a_list(verb: Callable[P, Pipeline]) -> Callable[P, Pipeline]:
    """Return a verb that says so where it is given pipelines one by one."""

    @functools.wraps(verb)
    def checked(*args: P.args, **kwargs: P.kwargs) -> Pipeline:
        name = verb.__name__
        more = [*args[1:], *(given for key, given in kwargs.items() if key != "pipelines")]
        if any(isinstance(given, Pipeline) for given in more):
            raise PipelineTypeError(f"{name}() takes its pipelines as one argument: give a list, bk.{name}([a, b])")
        return verb(*args, **kwargs)

    return checked


@_of_a_list
def concat(pipelines: Sequence[Pipeline]) -> Pipeline:
    """All rows of the first pipeline, then all of the second one, and so on.

    Raises:
        PipelineError: there is no pipeline, or one ends in batches.

    >>> from batchkit import Loader, from_arrays
    >>> pipe = concat([from_arrays({"x": [1, 2]}), from_arrays({"x": [3]})]).batch(3)
    >>> [batch["x"].tolist() for batch in Loader(pipe)]
    [[1, 2, 3]]
    """
    return Pipeline(Concat(pipelines))


@_of_a_list
def zip(pipelines: Tree, stop: str = "error") -> Pipeline:
    """Row ``i`` is the tree of rows ``i``: a dict, tuple, list or any nesting of pipelines.

    Pipelines of unequal lengths are an error, or with ``stop="shortest"`` it ends with the shortest one. A random
    stage behind it draws by the position in the zip.

    Raises:
        PipelineError: there is no pipeline, or one ends in batches. When compiled: the lengths differ.

    >>> from batchkit import Loader, from_arrays
    >>> pipe = zip({"a": from_arrays([1, 2]), "b": from_arrays([3, 4])}).batch(2)
    >>> [(batch["a"].tolist(), batch["b"].tolist()) for batch in Loader(pipe)]
    [([1, 2], [3, 4])]
    """
    return Pipeline(Zip(pipelines, stop))


@_of_a_list
def interleave(pipelines: Sequence[Pipeline], block: int = 1) -> Pipeline:
    """``block`` rows of each pipeline in turn; one that has ended is passed over.

    Raises:
        PipelineError: there is no pipeline, one ends in batches, or ``block`` is below 1.

    >>> from batchkit import Loader, from_arrays
    >>> pipe = interleave([from_arrays([1, 2, 3]), from_arrays([10])]).batch(4)
    >>> [batch.tolist() for batch in Loader(pipe)]
    [[1, 10, 2, 3]]
    """
    return Pipeline(Interleave(pipelines, block))


@_of_a_list
def mix(
    pipelines: Sequence[Pipeline] | Mapping[str, Pipeline],
    weights: Sequence[float] | Mapping[str, float] | None = None,
    stop: str = "first",
    schedule: Sequence[tuple[int, Sequence[float] | Mapping[str, float]]] | None = None,
) -> Pipeline:
    """Rows of pipelines in the proportions of ``weights``, by a rule and not by chance.

    Of any two pipelines the one whose next row is due first comes first, row ``k`` of one of weight ``w`` being due
    at ``(k + 1/2) / w``; ties go to the first one. So each keeps its share over any run of rows, within about a row.
    A float is taken as the simplest fraction that it stands for: ``[0.7, 0.3]`` are 7 and 3 of 10 rows. A pipeline
    of weight 0 is never drawn. Pipelines and weights may be given by name.

    ``stop="first"`` ends where a pipeline is due that has no row left; ``"all"`` when each was through once, those
    that end earlier starting again (their next epoch); ``"forever"`` never. ``schedule=[(0, weights), (1000,
    weights)]`` has other weights from row 1000 of the mix on, counted anew.

    Raises:
        PipelineError: weights that are negative, not finite, all 0 or not one a pipeline; a pipeline of batches.

    >>> from batchkit import Loader, from_arrays
    >>> pipe = mix([from_arrays([1, 2, 3, 4]), from_arrays([10, 20, 30])], [2, 1]).batch(6)
    >>> [batch.tolist() for batch in Loader(pipe)]
    [[1, 10, 2, 3, 20, 4]]
    """
    return Pipeline(Mix(pipelines, weights, stop, schedule))
