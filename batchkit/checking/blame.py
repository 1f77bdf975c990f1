"""Which stage breaks the law, by what, and what to do."""

from __future__ import annotations

from typing import Any, NamedTuple

from batchkit import stages as st
from batchkit.checking import evidence
from batchkit.checking.checks import CHECKS, Difference, NotRunError, Reference, Way
from batchkit.checking.prints import printed
from batchkit.checking.running import prints_of
from batchkit.checking.verdict import Finding
from batchkit.errors import BatchkitError
from batchkit.pipeline import Pipeline
from batchkit.plan import Step, compile

__all__ = ["finding", "in_place", "places", "suspicions"]

TRIES = 3  # a difference that threads make does not come every time

_CLOCKS = ("time.", "datetime.datetime.now", "datetime.datetime.utcnow", "datetime.datetime.today", "datetime.date.")
_DRAWS = ("random.", "numpy.random.", "torch.rand", "tensorflow.random", "secrets.", "uuid.uuid", "posix.urandom")
_IDENTITIES = (
    *("builtins.id", "builtins.hash", "os.getpid", "posix.getpid", "nt.getpid", "os.environ", "os.getenv"),
    *("threading.get_ident", "_thread.get_ident", "threading.current_thread"),
)

_SEEN = {
    "again": "the same step, computed again, is another one",
    "order": "a step is another one after other steps, or a second later",
    "process": "a step is another one in another process",
    "threads": "a step is another one where several threads compute",
    "batch size": "a row is another one in batches of another size",
    "ranks": "the ranks' parts put together are not the batch that one rank has",
    "resume": "a run that is resumed goes on with another batch",
}


class Cause(NamedTuple):
    """What a stage does, and the mend."""

    what: str
    mend: str


def places(pipeline: Pipeline) -> list[int]:
    """Return behind how many stages it is worth looking: the source, and each stage that makes or moves rows."""
    return [0] + [
        number + 1
        for number, stage in enumerate(pipeline.stages)
        if not isinstance(stage, (st.OrderStage, st.Unbatch, st.Select, st.Drop, st.Rename, st.Cast, st.Cache))
    ]


def finding(way: Way, reference: Reference, seen: Difference) -> Finding:
    """Return the finding for a difference that was seen behind all stages, with the first stage that shows it."""
    pipeline, keys = reference.pipeline, reference.keys
    ways = [way, *(other for other in CHECKS if way.name == "again" and other.name == "order")]
    for turn in range(TRIES):
        for place in places(pipeline):
            try:
                before = Reference.taken(pipeline, place, keys)
                found = ways[turn % len(ways)].run(before)
            except NotRunError:
                continue
            except BatchkitError as exc:
                found = Difference(keys[0], (), (), f"it raised {type(exc).__name__}: {exc}")
            if found is not None:
                return _of_stage(way, pipeline, place, found, keys)
    what = _SEEN[way.name] + (f": {seen.said}" if seen.said else "")
    mend = "No stage shows it by itself every time: look for what functions share, and run verify again"
    if way.name == "resume":
        mend = "Every stage by itself gives the same: please report this, with the pipeline"
    return _made(way, pipeline, len(pipeline.stages), None, "the pipeline", seen, Cause(what, mend))


def in_place(pipeline: Pipeline, place: int, found: Difference) -> Finding:
    """Return the finding for a stage behind which the source has other rows."""
    cause = Cause(
        "it changes its argument in place, and with it the data set",
        "Change a copy: row['x'] = row['x'] + 1 makes a new array, row['x'] += 1 does not",
    )
    way = Way("source", "", lambda reference: None)
    return _made(way, pipeline, 0, place - 1, _where(pipeline, place - 1), found, cause)


def _of_stage(way: Way, pipeline: Pipeline, place: int, found: Difference, keys: Any) -> Finding:
    if place == 0:
        return _made(way, pipeline, 0, None, _source_name(pipeline), found, _of_source(way, found))
    number = place - 1
    if way.name in ("batch size", "ranks") and not Pipeline(pipeline.source, pipeline.stages[:number]).batched:
        # What sees one row at a time knows nothing of the others: rows meet only in memory that they share.
        calling = range(place) if isinstance(pipeline.stages[number], st.Batch) else [number]
        maker = next((one for one in reversed(calling) if _calls(pipeline, one)), number)
        cause = Cause(
            "the arrays that it returns for several rows are one and the same, filled anew at each call",
            "Return a new array for each row: np.array(buffer), or make it inside the function",
        )
        return _made(way, pipeline, place, maker, _where(pipeline, maker), found, cause)
    cause = _cause(way, pipeline, place, found, keys)
    return _made(way, pipeline, place, number, _where(pipeline, number), found, cause)


def _of_source(way: Way, found: Difference) -> Cause:
    said = f": {found.said}" if found.said else ""
    return Cause(
        f"{_SEEN[way.name]}{said}, and it is so before any stage",
        "Let it return the same rows every time: make its random numbers inside it from a fixed seed "
        "(np.random.default_rng(0)), read files in a sorted order, and leave random changes to random_map()",
    )


def _cause(way: Way, pipeline: Pipeline, place: int, found: Difference, keys: Any) -> Cause:
    stage = pipeline.stages[place - 1]
    said = f": {found.said}" if found.said else ""
    if way.name in ("batch size", "ranks"):
        return Cause(
            f"what becomes of a row depends on the other rows of its batch ({_SEEN[way.name]}{said})",
            "Compute a row from itself alone, and pass numbers of the whole data set as arguments: map(fn, mean=...). "
            "If it is meant (mixup, say), leave these checks out: without=('batch size', 'ranks'); another number of "
            "ranks gives other rows then",
        )
    draws = _draws_of(pipeline, place - 1)
    called = st.function_of(stage)
    function = stage if called is None else called
    does = _deeds(pipeline, place, keys, function) + _words(way, function)
    for what, is_random in does:
        mend = draws[0].upper() + draws[1:] if is_random else _MENDS.get(way.name, _MENDS["again"])
        return Cause(f"{_SEEN[way.name]}{said}; {what}", mend)
    mend = _MENDS.get(way.name, _MENDS["again"])
    return Cause(f"{_SEEN[way.name]}{said}", f"{mend}. If it draws, then {draws}" if mend is _MENDS["again"] else mend)


_MENDS = {
    "again": "Compute the row from its argument alone; what it needs besides (its number, say) can be a leaf of the "
    "data or an argument of map()",
    "process": "Compute the row from its argument alone: no id(), no hash() of text, no number of the process, no "
    "global that is changed while the program runs",
    "threads": "Let calls share nothing that they change: make buffers inside the function. Or use "
    "executor='processes'",
}


def _draws_of(pipeline: Pipeline, number: int) -> str:
    if isinstance(pipeline.stages[number], st.RandomMap):
        return "draw from rng, the second argument of the function, alone"
    if Pipeline(pipeline.source, pipeline.stages[: number + 1]).collated:
        return (
            "draw in random_map(fn(row, rng)) before batch(), which gives a row the same numbers every time, and let "
            "this function use what it has drawn"
        )
    batched = Pipeline(pipeline.source, pipeline.stages[:number]).batched
    return (
        f"use random_map(fn({'batch' if batched else 'row'}, rng)), and draw from rng: it gives a row the same numbers "
        "every time"
    )


def _deeds(pipeline: Pipeline, place: int, keys: Any, function: Any) -> list[tuple[str, bool]]:
    """Run the stages up to ``place`` once more, and return what was changed meanwhile: (in words, drawn from?)."""
    watched = {**evidence.outside(function)}
    if isinstance(stage_kwargs := _kwargs(pipeline, place), dict):
        watched |= {name: (lambda value=value: value) for name, value in stage_kwargs.items()}
    _run(pipeline, place - 1, keys)
    state = evidence.global_random()
    _run(pipeline, place - 1, keys)
    drawn_before = evidence.changes(state, evidence.global_random())
    _run(pipeline, place, keys[:1])  # what remembers a row remembers another one afterwards
    before, state = evidence.snapshot(watched), evidence.global_random()
    _run(pipeline, place, keys)
    drawn = [whose for whose in evidence.changes(state, evidence.global_random()) if whose not in drawn_before]
    changed = evidence.changes(before, evidence.snapshot(watched))
    deeds = [(f"it draws from {whose} global random numbers", True) for whose in drawn]
    for name in changed:
        if isinstance(watched[name](), evidence.RANDOM):
            deeds.append((f"it draws from {name}, a random generator that lives outside of the function", True))
        else:
            deeds.append((f"it changes {name}, which lives outside of the call", False))
    return deeds


def _kwargs(pipeline: Pipeline, place: int) -> Any:
    kwargs = getattr(pipeline.stages[place - 1], "kwargs", None)
    return dict(kwargs) if kwargs else None


def _run(pipeline: Pipeline, place: int, keys: Any) -> None:
    try:
        prints_of(pipeline, place, keys)
    except BatchkitError:  # it was seen to fail now and then: what it changed until then counts
        return


def _words(way: Way, function: Any) -> list[tuple[str, bool]]:
    """Return what the code of a function calls that gives something else every time."""
    names = sorted(evidence.names_in(function))
    found = [(f"it calls {name}()", True) for name in names if name.startswith(_DRAWS) and _is_call(name)]
    found += [(f"it reads the clock: {name}()", False) for name in names if name.startswith(_CLOCKS)]
    identities = [(f"it uses {name.removeprefix('builtins.')}", False) for name in names if name in _IDENTITIES]
    return identities + found if way.name == "process" else found + identities


def _is_call(name: str) -> bool:
    """Whether the name is of a function rather than of the module that has it."""
    return name.rpartition(".")[2] not in ("random", "Generator", "RandomState") or name == "random.random"


def suspicions(pipeline: Pipeline) -> list[str]:
    """Return what functions refer to that may give something else on another day."""
    notes = []
    for number, stage in enumerate(pipeline.stages):
        function = st.function_of(stage)
        if function is None:
            continue
        said = [what for what, _ in _words(Way("again", "", lambda reference: None), function)]
        if said:
            notes.append(
                f"{_where(pipeline, number)}: {'; '.join(dict.fromkeys(said))}. Nothing came of it here; see that its "
                "result does not depend on it"
            )
    return notes


def _calls(pipeline: Pipeline, number: int) -> bool:
    return st.function_of(pipeline.stages[number]) is not None


def _where(pipeline: Pipeline, number: int) -> str:
    return f"stage {number} {pipeline.stages[number].label}"


def _source_name(pipeline: Pipeline) -> str:
    source = pipeline.source
    named = getattr(source, "kind", type(source).__name__)
    return f"the source ({named})"


def _made(
    way: Way, pipeline: Pipeline, place: int, stage: int | None, where: str, found: Difference, cause: Cause
) -> Finding:
    rows = _source_rows(pipeline, place, found)
    return Finding(way.name, stage, where, found.key.epoch, found.key.step, rows, found.leaves, *cause)


def _source_rows(pipeline: Pipeline, place: int, found: Difference) -> tuple[int, ...]:
    plan = compile(printed(pipeline, place), lineage=True)
    if not plan.indexed:
        return found.places[:8]
    try:
        lineage = plan.origins(Step(*found.key))
    except BatchkitError:  # a filter on batches that fails now and then
        return found.places[:8]
    whole = Pipeline(pipeline.source, pipeline.stages[:place]).collated  # the batch is one thing, of all its rows
    named = [origin.row for one in (range(lineage.rows) if whole else found.places[:8]) for origin in lineage.at(one)]
    return tuple(named[:8])
