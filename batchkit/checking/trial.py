"""Running the law on somebody's own pipeline."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from batchkit import stages as st
from batchkit.checking.blame import finding, in_place, places, suspicions
from batchkit.checking.checks import CHECKS, Difference, NotRunError, Reference, Way, difference
from batchkit.checking.running import Key, chosen_steps, prints_of
from batchkit.checking.verdict import Check, Finding, Verdict
from batchkit.errors import PipelineError, PipelineTypeError, nearest
from batchkit.pipeline import Pipeline
from batchkit.plan import compile
from batchkit.stages.stage import at_least

__all__ = ["NAMES", "verify"]

NAMES = ("source", *(way.name for way in CHECKS), "state")
"""The names of all checks."""

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def verify(pipeline: Pipeline, *, steps: int = 8, seed: int = 0, without: Iterable[str] = ()) -> Verdict:
    """Check whether a pipeline obeys the law, and name the stage that breaks it.

    Batch k is to be a pure function of (pipeline, data, seed, k). So some steps are computed, and then once more: in
    the same way, in another order, in another process, by several threads, in batches of another size, as several
    ranks, and by a loader that is resumed; the bytes have to be the same. Where they are not, the stages are looked
    at one after the other. How long it takes depends on ``steps``, not on the size of the data set; each step is
    computed about a dozen times.

    Args:
        pipeline: what to check; it ends in batches.
        steps: how many steps are looked at: the first, the last, and others; of a generator, the first ones.
        seed: what the others depend on; another seed looks at others.
        without: names of checks to leave out: ``"process"``, ``"threads"``, ``"batch size"``, ``"ranks"``, ...

    Raises:
        PipelineError: the pipeline has no batches, or an argument is not valid.
        BatchkitError: a step cannot be computed at all.
    """
    steps, left_out = at_least(steps, "verify(steps)", 1), _checked_names(without)
    pipeline = _uncached(pipeline)
    keys = chosen_steps(compile(pipeline), steps, at_least(seed, "verify(seed)", 0))
    if not keys:
        raise PipelineError("the pipeline has no batches, so that there is nothing to verify. Give it rows")
    checks: list[Check] = []
    findings: list[Finding] = []
    said = compile(pipeline).fingerprint()
    if "source" not in left_out:
        findings += _source_stays(pipeline, keys, checks)
    if not findings:
        keys = _ways(pipeline, keys, left_out, checks, findings)
    if "state" not in left_out:
        findings += _state_stays(pipeline, said, keys[0], checks)
    return Verdict(
        tuple(findings), tuple(checks), tuple((epoch, step) for epoch, step in keys), tuple(_notes(pipeline, findings))
    )


def _uncached(pipeline: Pipeline) -> Pipeline:
    """Return the pipeline with caches that keep nothing: a row that was kept would not be computed once more."""
    if not isinstance(pipeline, Pipeline) or not any(isinstance(stage, st.Cache) for stage in pipeline.all_stages):
        return pipeline
    source = pipeline.source
    if pipeline.parts:
        source = source.with_parts([_uncached(part) for part in pipeline.parts])
    stages = [stage.unkept() if isinstance(stage, st.Cache) else stage for stage in pipeline.stages]
    return Pipeline(source, tuple(stages))


def _notes(pipeline: Pipeline, findings: Sequence[Finding]) -> list[str]:
    if any(finding.check != "state" for finding in findings):
        return ["mend this and verify again: what comes behind it could not be told apart"]
    return suspicions(pipeline)


def _checked_names(without: Iterable[str]) -> set[str]:
    if isinstance(without, str):
        raise PipelineTypeError(f"verify(without) must be several names, such as ({without!r},), not a text")
    names = set(without)
    for name in sorted(names - {*NAMES}):
        raise PipelineError(f"there is no check {name!r}{nearest(name, list(NAMES))} (there are: {', '.join(NAMES)})")
    return names


def _ways(
    pipeline: Pipeline, keys: list[Key], left_out: set[str], checks: list[Check], findings: list[Finding]
) -> list[Key]:
    """Compute the steps in every way, and return those that there are."""
    reference = Reference.taken(pipeline, len(pipeline.stages), keys)
    if not reference.keys:
        raise PipelineError("the pipeline has no batches, so that there is nothing to verify. Give it rows")
    for way in CHECKS:
        if way.name in left_out:
            checks.append(Check(way.name, "not run", "left out"))
        elif any(one.check in ("again", "order") for one in findings):
            checks.append(Check(way.name, "not run", "what comes by chance cannot be compared"))
        elif any(one.check == "batch size" for one in findings) and way.name == "ranks":
            checks.append(Check(way.name, "not run", "it would find the same as 'batch size'"))
        else:
            _try(way, reference, checks, findings)
    return list(reference.keys)


def _try(way: Way, reference: Reference, checks: list[Check], findings: list[Finding]) -> None:
    try:
        found = way.run(reference)
    except NotRunError as exc:
        checks.append(Check(way.name, "not run", str(exc)))
        return
    checks.append(Check(way.name, "same" if found is None else "differs", way.done))
    if found is not None:
        findings.append(finding(way, reference, found))


def _source_stays(pipeline: Pipeline, keys: Sequence[Key], checks: list[Check]) -> list[Finding]:
    """Compute the stages one after the other, and see whether the source has the same rows behind each."""
    if not hasattr(pipeline.source, "read"):
        return []  # what functions are given was copied
    again = next(way for way in CHECKS if way.name == "again")
    before = Reference.taken(pipeline, 0, keys)
    found: Difference | None = again.run(before)
    made = None if found is None else finding(again, before, found)
    for place in places(pipeline)[1:]:
        if made is not None or st.function_of(pipeline.stages[place - 1]) is None:
            continue
        prints_of(pipeline, place, keys)
        found = difference(before.prints, prints_of(pipeline, 0, keys))
        made = None if found is None else in_place(pipeline, place, found)
    done = "the rows of the source, before and after each function was called"
    checks.append(Check("source", "same" if made is None else "differs", done))
    return [] if made is None else [made]


def _state_stays(pipeline: Pipeline, said: dict[str, object], key: Key, checks: list[Check]) -> list[Finding]:
    """See whether states are recognised by a later run: what they say of the pipeline has to be the same."""
    plan = compile(pipeline)
    again = plan.fingerprint()
    checks.append(Check("state", "same", "what a state says of the pipeline, for a later run to recognise it"))
    made: list[Finding] = []
    if said["source"] != again["source"] or _ADDRESS.search(str(again["source"])):
        what = f"its fingerprint() is another one each time ({said['source']!r}, then {again['source']!r})"
        mend = "Return something that depends on the data alone: a version, a size, a hash"
        made.append(Finding("state", None, "the source", *key, (), (), what, mend))
    for number, stage in enumerate(pipeline.stages):
        if _ADDRESS.search(stage.label):
            what = "what a state says of it holds an address in memory, so that a later run would refuse the state"
            mend = "Pass plain values as arguments, or give their class a __repr__ that says what they are"
            made.append(Finding("state", number, f"stage {number} {stage.label}", *key, (), (), what, mend))
    if made:
        checks[-1] = Check("state", "differs", checks[-1].detail)
    return made
