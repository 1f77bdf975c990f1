"""The description of a pipeline: a source and stages. An immutable value; nothing runs."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from batchkit import stages as st
from batchkit.errors import CacheWarning, ConfigError, PipelineError, PipelineTypeError, UnknownNameError, nearest
from batchkit.functions import describe_function
from batchkit.peers import known_arguments, verb_hint
from batchkit.preview import lines, preview
from batchkit.sources import (
    SOURCES,
    ArraySource,
    Combination,
    GeneratorSource,
    NpySource,
    NpzSource,
    RaggedSource,
    SequenceSource,
    Source,
)
from batchkit.sources.combined import built_parts, described_parts
from batchkit.stages import Stage
from batchkit.tree import Tree

__all__ = [
    "Pipeline",
    "Registry",
    "from_arrays",
    "from_generator",
    "from_npy",
    "from_npz",
    "from_ragged",
    "from_sequence",
    "from_source",
]


class Registry(Protocol):
    """What knows sources by kind and stages by verb, those of plugins included."""

    def source(self, kind: str) -> Callable[..., Any]:
        """Return what makes a source of that kind."""
        ...

    def stage(self, verb: str) -> type[Stage]:
        """Return the stage of that verb."""
        ...


@dataclass(frozen=True, repr=False)
class Pipeline:
    """A source and the stages its rows go through; every verb returns a new pipeline.

    >>> import numpy as np
    >>> pipe = from_arrays({"x": np.zeros((10, 3), np.float32)}).shuffle(seed=1).batch(4)
    >>> print(pipe)
    arrays: 10 rows of {x: float32[3]}
      0 shuffle(seed=1)
      1 batch(size=4)
    """

    source: Any
    stages: tuple[Stage, ...] = field(default=())

    # -- order

    @known_arguments
    def shuffle(self, seed: int = 0, *, reshuffle: bool = True, window: int | None = None) -> Pipeline:
        """Permute all rows (or batches), differently in every epoch.

        With ``window`` only each run of so many rows is permuted, and never more of them are held: for a
        generator, and behind stages that change how many rows there are.

        ``reshuffle=False`` is one order for ever, by the seed and the number of rows alone: that is how a data set
        is split, ``.shuffle(7, reshuffle=False).take(1000)`` and ``.shuffle(7, reshuffle=False).skip(1000)``.
        """
        return self._then(st.Shuffle(seed, reshuffle, window))

    @known_arguments
    def repeat(self, count: int | None = None) -> Pipeline:
        """Go over the rows ``count`` times, for ever without a count; each pass is shuffled anew.

        Before ``batch`` a batch may hold rows of two passes; behind it none does.
        """
        return self._then(st.Repeat(count))

    @known_arguments
    def take(self, count: int) -> Pipeline:
        """Keep the first ``count`` rows (or batches), as ``rows[:count]`` does."""
        return self._then(st.Take(count))

    @known_arguments
    def skip(self, count: int) -> Pipeline:
        """Leave out the first ``count`` rows (or batches), as ``rows[count:]`` does."""
        return self._then(st.Skip(count))

    # -- functions

    def map(self, fn: Callable[..., Any] | str, **kwargs: Any) -> Pipeline:
        """Apply ``fn(row, **kwargs) -> row``, or behind ``batch`` ``fn(columns, **kwargs) -> columns``.

        A row is a tree of scalars and arrays; columns are the same tree of arrays with one
        leading axis, whose length ``fn`` must keep. ``fn`` may be ``"module:name"``; numbers of NumPy's
        among ``kwargs`` arrive as Python's. It must be a pure function of its arguments; what it
        returns and keeps itself is copied. Each rank calls it on its own rows of a batch.
        """
        return self._then(st.Map(fn, kwargs))  # type: ignore[arg-type]

    def random_map(self, fn: Callable[..., Any] | str, *, seed: int = 0, **kwargs: Any) -> Pipeline:
        """Apply ``fn(row, rng, **kwargs)``, or behind ``batch`` ``fn(columns, rng, **kwargs)``.

        Behind ``batch``, every draw of ``rng`` gives one value a row, and ``size`` is what each row gets: noise for
        a leaf is ``rng.normal(size=columns["x"].shape[1:])``. The numbers depend on (seed, epoch, stage, row)
        alone, so that a row is treated alike at any batch size, worker count and number of ranks. Draws:
        ``random uniform normal standard_normal integers bernoulli choice``; ``rng.generator()``, behind ``batch``
        ``rng.generator(i)`` for row ``i``, is NumPy's own generator.
        """
        return self._then(st.RandomMap(fn, kwargs, seed))  # type: ignore[arg-type]

    def filter(self, fn: Callable[..., Any] | str, **kwargs: Any) -> Pipeline:
        """Keep the rows for which ``fn(row, **kwargs)`` is true.

        Behind ``batch``, ``fn(columns, **kwargs)`` returns one boolean a row, and the batch becomes smaller:
        fast, and with ``rebatch`` behind it batches are full again.

        >>> import numpy as np
        >>> from batchkit.plan import compile
        >>> pipe = from_arrays({"x": np.arange(10)}).filter(lambda row: row["x"] % 3 == 0).batch(3)
        >>> compile(pipe).batch(0)["x"].tolist(), compile(pipe).batch(1)["x"].tolist()
        ([0, 3, 6], [9])
        """
        return self._then(st.Filter(fn, kwargs))  # type: ignore[arg-type]

    def flat_map(self, fn: Callable[..., Any] | str, **kwargs: Any) -> Pipeline:
        """Put the rows that ``fn(row, **kwargs)`` returns or yields, any number of them, in the place of each row.

        >>> import numpy as np
        >>> from batchkit.plan import compile
        >>> pipe = from_arrays({"n": np.arange(4)}).flat_map(lambda row: [{"x": i} for i in range(row["n"])]).batch(6)
        >>> compile(pipe).batch(0)["x"].tolist()
        [0, 0, 1, 0, 1, 2]
        """
        return self._then(st.FlatMap(fn, kwargs))  # type: ignore[arg-type]

    # -- cutting

    @known_arguments
    def window(
        self, length: int, stride: int | None = None, *, inside: bool = False, remainder: str = "drop"
    ) -> Pipeline:
        """Put ``length`` consecutive rows into one, beginning at every ``stride``-th; without it, end to end.

        Each leaf gets a new first axis. ``inside=True`` cuts the leaves of each row along their first axis
        instead, so that a row becomes several. ``remainder`` says what becomes of windows that the end cuts
        short: ``"drop"``, ``"keep"``, or ``"pad"`` with zeros and a boolean leaf ``"mask"`` of shape ``(length,)``.

        >>> import numpy as np
        >>> from batchkit.plan import compile
        >>> pipe = from_arrays({"x": np.arange(7)}).window(3, stride=2).batch(2)
        >>> compile(pipe).batch(0)["x"].tolist()
        [[0, 1, 2], [2, 3, 4]]
        """
        return self._then(st.Window(length, stride, inside, remainder))

    @known_arguments
    def batch(self, size: int, *, remainder: str = "keep", collate: Callable[..., Any] | str | None = None) -> Pipeline:
        """Put ``size`` rows into a batch; ``remainder`` is ``"keep"``, ``"drop"`` or ``"pad"``.

        ``size`` counts the rows over all ranks. ``"pad"`` fills the last batch with zeros and
        adds a boolean leaf ``"mask"``, true for real rows, so that all shapes are static.

        ``collate(rows) -> batch`` (a function, or its name ``"module:name"``) makes the batch itself, of the list of
        the rows that this rank has of it: a tree of arrays of any shapes, and of other shapes in every batch. There
        are no rows behind it, so that only ``map``, ``cast``, ``select``, ``drop``, ``rename``, ``take``, ``skip`` and
        ``repeat`` can follow.

        >>> import numpy as np
        >>> from batchkit.plan import compile
        >>> pipe = from_ragged({"x": np.arange(6)}, [0, 1, 3, 6])
        >>> pipe = pipe.batch(2, collate=lambda rows: {"x": np.concatenate([row["x"] for row in rows])})
        >>> compile(pipe).batch(0)["x"].tolist(), compile(pipe).batch(1)["x"].tolist()
        ([0, 1, 2], [3, 4, 5])
        """
        return self._then(st.Batch(size, remainder, collate=collate))  # type: ignore[arg-type]

    @known_arguments
    def padded_batch(
        self,
        size: int,
        *,
        length: int | Sequence[int | None] | Mapping[str, Any] | None = None,
        multiple_of: int = 1,
        pad_value: Any = 0,
        remainder: str = "keep",
        lengths: bool = False,
    ) -> Pipeline:
        """Put ``size`` rows whose leaves differ in shape into a batch, filled up behind their values.

        ``length`` is what leaves are filled up to along their first axis (a list: along several axes), one for
        all or a mapping by leaf: then shapes are static, and a longer row is an error. Without it the longest
        row of the rank's batch decides, rounded up to ``multiple_of``. ``pad_value`` is one for all leaves, or a
        mapping by leaf. ``lengths=True`` adds an int64 leaf ``"x_length"`` for every padded leaf ``"x"``.

        >>> import numpy as np
        >>> pipe = from_ragged({"x": np.arange(6)}, [0, 1, 3, 6]).padded_batch(3, pad_value=-1)
        >>> from batchkit.plan import compile
        >>> compile(pipe).batch(0)["x"].tolist()
        [[0, -1, -1], [1, 2, -1], [3, 4, 5]]
        """
        return self._then(st.PaddedBatch(size, remainder, length, multiple_of, pad_value, lengths))

    @known_arguments
    def bucket_batch(
        self,
        size: int | None = None,
        *,
        boundaries: Sequence[int | None] | int,
        max_tokens: int | None = None,
        length: Any = None,
        pad_to: str = "bucket",
        multiple_of: int = 1,
        pad_value: Any = 0,
        remainder: str = "keep",
        lengths: bool = False,
    ) -> Pipeline:
        """Put rows of like length into a batch, filled up behind their values: less padding than ``padded_batch``.

        ``boundaries`` are the greatest lengths of the buckets, rising, with ``None`` at the end for any length; or a
        number of buckets of equally many rows, where lengths are known without reading (``from_ragged``, or
        ``length=array``). A batch comes out when its bucket has ``size`` rows, or as many as make ``max_tokens``
        places. ``length`` is the leaf that counts, a function ``row -> int``, or an array by source row; without it
        all leaves that vary must agree. ``pad_to="longest"`` fills up to the longest row of a rank's batch, rounded
        up to ``multiple_of``, instead of to the boundary. ``remainder``: what becomes of buckets that are not full
        at the end. Where lengths are known, no rank reads more than its own rows.

        >>> import numpy as np
        >>> from batchkit.plan import compile
        >>> pipe = from_ragged({"x": np.arange(10)}, [0, 1, 4, 5, 10]).bucket_batch(2, boundaries=[2, 5])
        >>> compile(pipe).batch(0)["x"].tolist()
        [[0, 0], [4, 0]]
        """
        options = {"boundaries": boundaries, "max_tokens": max_tokens, "length": length, "pad_to": pad_to}
        more = {"multiple_of": multiple_of, "pad_value": pad_value, "lengths": lengths}
        return self._then(st.BucketBatch(size, remainder, **options, **more))

    @known_arguments
    def pack(
        self,
        length: int | Mapping[str, int],
        *,
        method: str = "first_fit",
        bins: int = 64,
        oversize: str = "error",
        pad_value: Any = 0,
    ) -> Pipeline:
        """Put rows of sequences end to end into rows of one length, with almost no padding.

        Adds int32 leaves of that length: ``"segment_ids"``, counted from 1 with 0 behind the last segment, and
        ``"positions"``, from 0 in each segment; with a ``length`` by leaf ``"x_segment_ids"`` and ``"x_positions"`` for
        each. A sequence goes to the first of at most ``bins`` open rows that has room, or with
        ``method="best_fit"`` to the fullest; where none has, the fullest is given out. A longer one is an error, cut
        off (``oversize="truncate"``) or cut into pieces (``"split"``). Rows of length 0 take no place.

        >>> import numpy as np
        >>> from batchkit.plan import compile
        >>> pipe = from_ragged({"x": np.arange(1, 7)}, [0, 3, 5, 6]).pack(4).batch(2)
        >>> batch = compile(pipe).batch(0)
        >>> batch["x"].tolist(), batch["segment_ids"].tolist()
        ([[1, 2, 3, 6], [4, 5, 0, 0]], [[1, 1, 1, 2], [1, 1, 0, 0]])
        """
        return self._then(st.Pack(length, method, bins, oversize, pad_value))

    @known_arguments
    def unbatch(self) -> Pipeline:
        """Take batches apart into rows."""
        return self._then(st.Unbatch())

    @known_arguments
    def rebatch(self, size: int, *, remainder: str = "keep") -> Pipeline:
        """Put the rows of batches into batches of ``size`` rows: ``unbatch()`` and ``batch(size)`` in one."""
        return self._then(st.Rebatch(size, remainder))

    # -- keeping

    def cache(self, path: str | os.PathLike[str] | None = None, *, memory: int | str | None = None) -> Pipeline:
        """Compute each row before it (behind ``batch``: each batch) once, and keep it: in memory, or in files.

        What comes before is frozen as it is in its first epoch; what comes behind is as random as ever. In memory
        ``memory`` is the most it may take (bytes, or text such as ``"2GB"``); without it, half of what is free. With
        a ``path``, rows are kept in a folder there as ``.npy`` files, which processes share, which a crash does no
        harm to, and which are used again for as long as the data and the stages before are the same.

        Warns:
            CacheWarning: something before it is random, and is frozen.
        """
        return self._then(st.Cache(path, memory))  # type: ignore[arg-type]

    # -- columns

    def select(self, *names: str) -> Pipeline:
        """Keep only these leaves; ``"meta/id"`` reaches into a nesting."""
        return self._then(st.Select(names))

    def drop(self, *names: str) -> Pipeline:
        """Leave these leaves out."""
        return self._then(st.Drop(names))

    def rename(self, names: Mapping[str, str] | None = None, /, **more: str) -> Pipeline:
        """Give leaves other names: ``rename(old="new")`` or ``rename({"meta/id": "uid"})``."""
        return self._then(st.Rename(_merged(names, more, "rename({'old': 'new'}), or rename(old='new')")))

    def cast(self, dtypes: Mapping[str, Any] | None = None, /, **more: Any) -> Pipeline:
        """Convert leaves: ``cast(image="float32")``; a name of NumPy's, or a dtype of NumPy's or a framework's.

        Rounded, as NumPy does it: floats to fewer bits, integers and times to the nearest float, times to a
        coarser unit; fractions are cut off where the leaf becomes integers. Everything that is not 0 is ``True``.
        An error: what is out of range, NaN or infinity to an integer, an imaginary part to a real number, text
        that is longer than ``"U8"`` says.
        """
        return self._then(st.Cast(_merged(dtypes, more, "cast({'image': 'float32'}), or cast(image='float32')")))

    def apply(self, stage: Stage) -> Pipeline:
        """Add a stage object, such as a plugin's :class:`~batchkit.stages.ColumnStage`."""
        if not isinstance(stage, Stage):
            raise PipelineTypeError(f"apply() needs a Stage, not a {type(stage).__name__}; a function goes into map()")
        return self._then(stage)

    def _then(self, stage: Stage) -> Pipeline:
        """Add a stage, after checking that it may stand where it would."""
        batched = self.batched
        if self.collated and not isinstance(stage, _BEHIND_COLLATE):
            raise _no_rows(stage, self.stages)
        if isinstance(stage, st.Batch) and batched:
            raise PipelineError(f"{stage.label} cannot follow batches: add .unbatch() before it")
        if isinstance(stage, (st.Unbatch, st.Rebatch)) and not batched:
            raise PipelineError(f"{stage.verb}() needs batches to take apart: it stands behind rows here")
        if isinstance(stage, (st.FlatMap, st.Window, st.Pack)) and batched:
            raise PipelineError(f"{stage.label} works on rows: put it before batch(), or add .unbatch() before it")
        if isinstance(stage, st.FunctionStage) and not batched and _of_batches(stage.fn):
            name = describe_function(stage.fn)
            raise PipelineError(f"{stage.verb}({name}): it works on whole batches. Put it behind batch()")
        if isinstance(stage, st.Filter) and batched and self._masked:
            raise PipelineError(
                f"{stage.label} would change the static shapes of remainder='pad': filter before batch(), or have a "
                "map() clear the mask of rows"
            )
        if isinstance(stage, st.Cache):
            _warn_of_frozen(self)
        return Pipeline(self.source, (*self.stages, stage))

    @property
    def _masked(self) -> bool:
        """Whether the last cut fills its last batch up."""
        cuts = [stage for stage in self.stages if isinstance(stage, (st.Batch, st.Rebatch))]
        return bool(cuts) and cuts[-1].remainder == "pad"

    @property
    def batched(self) -> bool:
        """Whether the pipeline ends in batches rather than rows."""
        batched = bool(getattr(self.source, "batched", False))
        for stage in self.stages:
            if isinstance(stage, (st.Batch, st.Rebatch)):
                batched = True
            elif isinstance(stage, st.Unbatch):
                batched = False
        return batched

    @property
    def collated(self) -> bool:
        """Whether a function makes the batches that the pipeline ends in: they have no rows any more."""
        return any(isinstance(stage, st.Batch) and stage.collate is not None for stage in self.stages)

    # -- reading it

    @property
    def schema(self) -> Tree:
        """The schema of a row at the end of the pipeline; tries the functions on the first row.

        Of a batch that a function makes (``batch(collate=...)``) it is that of the batch, with all sides open.

        Raises:
            BatchkitError: reading the first row or one of the functions failed.
        """
        last = preview(self.source, self.stages)[-1]
        if last.problem is not None:
            raise last.problem
        return last.schema

    @property
    def parts(self) -> tuple[Pipeline, ...]:
        """The pipelines that this one combines; none where it has data of its own."""
        return self.source.parts if isinstance(self.source, Combination) else ()

    @property
    def sources(self) -> tuple[Any, ...]:
        """Where rows come from in the end: the source, or those of all parts, in order."""
        return tuple(source for part in self.parts for source in part.sources) if self.parts else (self.source,)

    @property
    def all_stages(self) -> tuple[Stage, ...]:
        """The stages as messages and reports count them: those of the parts in order, then its own."""
        return (*(stage for part in self.parts for stage in part.all_stages), *self.stages)

    def with_sources(self, replace: Callable[[Any], Any]) -> Pipeline:
        """Return the same stages over ``replace(source)`` for each of :attr:`sources`."""
        if isinstance(self.source, Combination):
            parts = [part.with_sources(replace) for part in self.parts]
            return Pipeline(self.source.with_parts(parts), self.stages)
        return Pipeline(replace(self.source), self.stages)

    if not TYPE_CHECKING:  # for a type checker they are not there, nor are the names that __getattr__ is asked for

        def __iter__(self) -> NoReturn:
            raise PipelineTypeError(f"a pipeline only describes, and has no rows to iterate over: use {self._loader}")

        def __getitem__(self, index: Any) -> NoReturn:
            raise PipelineTypeError(
                f"a pipeline only describes, and has no rows to index: pipe.skip(start).take(count) are some of them, "
                f"and {self._loader} loads them"
            )

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_") or hasattr(type(self), name):  # a protocol's, or what a property has raised
                return object.__getattribute__(self, name)
            verbs = [verb for verb in dir(type(self)) if not verb.startswith("_")]
            raise AttributeError(f"a pipeline has no {name!r}{verb_hint(name, verbs)}")

    @property
    def _loader(self) -> str:
        return "bk.Loader(pipe)" if self.batched else "bk.Loader(pipe.batch(n))"

    def __repr__(self) -> str:
        return "\n".join(lines(self.source, self.stages)[0])

    def to_dict(self) -> dict[str, Any]:
        """Return the pipeline as JSON values, the same shape as ``pipeline:`` in a config file.

        Raises:
            PipelineError: the source lives in memory only, or a function cannot be imported.
        """
        export = getattr(self.source, "to_dict", None)
        if export is None:
            kind = getattr(self.source, "kind", type(self.source).__name__)
            raise PipelineError(
                f"a pipeline over {kind!r} cannot be exported: its data live in this process alone. "
                "Save them (np.save) and use from_npy(), or use from_generator('module:name')"
            )
        return {"source": export(), "stages": [{stage.verb: stage.arguments()} for stage in self.stages]}

    @classmethod
    def from_dict(
        cls, description: Mapping[str, Any], *, allow_imports: bool = True, registry: Registry | None = None
    ) -> Pipeline:
        """Build a pipeline from what :meth:`to_dict` returned.

        Functions are imported by name, which runs their modules: with ``allow_imports=False``
        a description that names one is refused. ``registry`` adds plugins' sources and stages.

        Raises:
            ConfigError: imports are needed and not allowed, or the shape is wrong.
            PipelineError: a stage's argument is wrong.
            UnknownNameError: there is no such source or stage.
        """
        registry = registry or _BuiltIn()
        if not isinstance(description, Mapping) or not isinstance(description.get("source"), Mapping):
            raise ConfigError("a pipeline needs 'source', a mapping with the key 'kind'")
        if not allow_imports:
            _refuse_imports(description)
        source = dict(description["source"])
        factory = registry.source(source.pop("kind", ""))
        if _combines(factory) and "pipelines" in source:
            source["pipelines"] = built_parts(
                source["pipelines"], lambda part, _: cls.from_dict(part, allow_imports=allow_imports, registry=registry)
            )
        pipe = cls(factory(**source))
        for number, entry in enumerate(description.get("stages", ())):
            if not isinstance(entry, Mapping) or len(entry) != 1:
                raise ConfigError(f"stages[{number}] must be one verb with its arguments, not {entry!r}")
            ((verb, arguments),) = entry.items()
            pipe = pipe._then(registry.stage(verb).from_arguments(arguments or {}))
        return pipe


_BEHIND_COLLATE = (st.Map, st.ColumnStage, st.Take, st.Skip, st.Repeat)


def _no_rows(stage: Stage, before: Sequence[Stage]) -> PipelineError:
    """Return the error for a stage that needs rows behind a function that has made batches of them."""
    cut = next(one for one in before if isinstance(one, st.Batch) and one.collate is not None)
    cuts = isinstance(stage, (st.Batch, st.Rebatch, st.Unbatch))
    mend = f"Give {cut.verb}() the size that is wanted" if cuts else f"Put {stage.verb}() before {cut.verb}()"
    return PipelineError(
        f"{stage.label} cannot follow {cut.label}: its function makes the batch, which has no rows any more. {mend}. "
        "Behind it can stand map, cast, select, drop, rename, take, skip and repeat"
    )


def _merged(given: Any, more: Mapping[str, Any], example: str) -> dict[str, Any]:
    """Return a mapping and keywords as one."""
    if given is not None and not isinstance(given, Mapping):
        raise PipelineTypeError(f"say which leaf: {example}, not {example.partition('(')[0]}({given!r})")
    return {**(given or {}), **more}


def _of_batches(function: Any) -> bool:
    """Say whether a function is one of :mod:`batchkit.transforms`."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__module__", None) == "batchkit.transforms"


def _combines(factory: Any) -> bool:
    return isinstance(factory, type) and issubclass(factory, Combination)


def _warn_of_frozen(before: Pipeline) -> None:
    for number, stage in _unfrozen(before):
        warnings.warn(
            f"cache() keeps what stage {number} {stage.label} has made of the first epoch for all epochs. Put "
            "cache() before it to have it random again in every epoch"
            + (", or say shuffle(reshuffle=False)" if isinstance(stage, st.Shuffle) else ""),
            CacheWarning,
            stacklevel=4,
        )
        return


def _unfrozen(pipeline: Pipeline, first: int = 0) -> Iterator[tuple[int, Stage]]:
    """Yield the stages behind the last cache that are another thing in every epoch, with their numbers."""
    kept = max((place for place, stage in enumerate(pipeline.stages) if isinstance(stage, st.Cache)), default=-1)
    for part in pipeline.parts:
        if kept < 0:
            yield from _unfrozen(part, first)
        first += len(part.all_stages)
    for place, stage in enumerate(pipeline.stages):
        changes = isinstance(stage, st.RandomMap) or (isinstance(stage, st.Shuffle) and stage.reshuffle)
        if place > kept and changes:
            yield first + place, stage


def _refuse_imports(description: Mapping[str, Any]) -> None:
    found = list(_named_functions(description))
    if found:
        raise ConfigError(
            f"the pipeline names functions, which would be imported and run: {', '.join(found)}. "
            "Leave allow_imports=False out if you trust it"
        )


def _named_functions(description: Mapping[str, Any]) -> Iterator[str]:
    source = description.get("source")
    if isinstance(source, Mapping):
        if source.get("fn") is not None:
            yield str(source["fn"])
        if _combines(SOURCES.get(str(source.get("kind")))) and "pipelines" in source:
            for _, part in described_parts(source["pipelines"]):
                yield from _named_functions(part)
    for entry in description.get("stages", ()):
        for arguments in entry.values() if isinstance(entry, Mapping) else ():
            if not isinstance(arguments, Mapping):
                continue
            yield from (str(arguments[name]) for name in ("fn", "collate") if arguments.get(name) is not None)
            length = arguments.get("length")  # a number, a leaf's name, or that of a function
            if isinstance(length, str) and ":" in length:
                yield length


class _BuiltIn:
    """The registry of batchkit's own sources and stages."""

    def source(self, kind: str) -> Callable[..., Any]:
        if kind not in SOURCES:
            raise UnknownNameError(
                f"no source kind {kind!r}{nearest(str(kind), list(SOURCES))} (there are: {', '.join(SOURCES)})"
            )
        return SOURCES[kind]

    def stage(self, verb: str) -> type[Stage]:
        if verb not in st.STAGES:
            raise UnknownNameError(
                f"no stage {verb!r}{nearest(str(verb), list(st.STAGES))} (there are: {', '.join(st.STAGES)})"
            )
        return st.STAGES[verb]


def from_arrays(arrays: Tree) -> Pipeline:
    """Rows from arrays with one leading axis: a dict, tuple or any nesting of them; memmaps too.

    Nothing is copied. Lists are taken as arrays.

    Raises:
        SchemaError: leaves of different lengths, a zero-dimensional leaf, Python objects.
    """
    return Pipeline(ArraySource(arrays))


def from_npy(path: Tree) -> Pipeline:
    """Rows from ``.npy`` files, mapped into memory: one path, or a tree of paths.

    Raises:
        SourceNotFoundError: a file is not there.
        CorruptSourceError: a file is no ``.npy``, is truncated, or holds pickled objects.
    """
    return Pipeline(NpySource(path))


def from_npz(path: Any, keys: Any = None) -> Pipeline:
    """Rows from the arrays of a ``.npz`` file; uncompressed members are mapped, not read.

    Raises:
        SourceNotFoundError: the file is not there.
        CorruptSourceError: it is no ``.npz``, is truncated, or holds pickled objects.
    """
    return Pipeline(NpzSource(path, keys))


def from_sequence(sequence: Any) -> Pipeline:
    """Rows from anything with ``__len__`` and ``__getitem__``: lists, torch Datasets, Grain sources.

    Raises:
        PipelineTypeError: it is not such a thing.
    """
    return Pipeline(SequenceSource(sequence))


def from_generator(fn: Callable[..., Any] | Iterable[Any] | str, *, batched: bool = False, **kwargs: Any) -> Pipeline:
    """Rows, or with ``batched=True`` whole batches, from ``fn(**kwargs)``, called anew each epoch.

    ``fn`` may also be an object that can be iterated over again, such as torch's ``IterableDataset``: each epoch
    begins with ``iter(fn)``. Rows are counted as they come; resuming replays them up to where it was, unless the
    iterator (not the object) has ``state_dict()`` and ``load_state_dict()``.

    Raises:
        PipelineTypeError: ``fn`` is neither, or an iterator, which can be used once only.
    """
    return Pipeline(GeneratorSource(fn, batched, kwargs))


def from_ragged(values: Tree, offsets: Any, columns: Tree | None = None) -> Pipeline:
    """Rows of different lengths: row ``i`` is ``values[offsets[i]:offsets[i + 1]]`` of every array of ``values``.

    ``columns``, a dict of arrays with one entry a row, are joined to them. Nothing is copied. Behind
    ``batch`` such a leaf is a :class:`~batchkit.Ragged`; ``padded_batch`` makes an array of it.

    Raises:
        SchemaError: the offsets do not cut the values, or the columns have another number of rows.
    """
    return Pipeline(RaggedSource(values, offsets, columns))


def from_source(source: Any) -> Pipeline:
    """Rows from anything that obeys the :class:`~batchkit.sources.Source` protocol.

    Raises:
        PipelineTypeError: it lacks a part of the protocol; names which.
    """
    lacking = [name for name in ("schema", "__len__", "fingerprint", "gather") if not hasattr(type(source), name)]
    if lacking and not isinstance(source, Source):
        raise PipelineTypeError(
            f"from_source(): {type(source).__name__} lacks {', '.join(lacking)} of the Source protocol"
        )
    return Pipeline(source)
