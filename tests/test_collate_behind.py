"""Behind batch(collate=...): what may differ between batches, whose their arrays are, and which stages may follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from collating import ALL, as_generator, cut, lists, made_of, numbers, ragged, trimmed
from executors import every

import batchkit as bk
from batchkit.buffers import Slots, aligned_empty
from batchkit.stages import STAGES

# --- between two batches


def test_shapes_and_ranks_may_differ_from_batch_to_batch() -> None:
    pipe = numbers(6).batch(2, collate=lambda rows: np.zeros((1,) * int(rows[0]["n"])))
    with bk.Loader(pipe) as loader:
        assert [batch.shape for batch in loader] == [(), (1, 1), (1, 1, 1, 1)]


def test_text_may_differ_in_its_length() -> None:
    with bk.Loader(numbers(4).batch(2, collate=lambda rows: "a" * (1 + int(rows[0]["n"])))) as loader:
        assert [batch.tolist() for batch in loader] == ["a", "aaa"]


def test_another_dtype_is_refused_with_the_function_and_the_mend() -> None:
    def changing(rows: list[Any]) -> Any:
        return {"x": np.zeros((2, 3), np.float32 if rows[0]["n"] else np.int64)}

    message = (
        r"epoch 0, step 1: leaf 'x' is float32, but in epoch 0, step 0 it was int64, after stage 0 "
        r"batch\(size=2, collate=.*changing\). Return one dtype, or add .cast\(x='float64'\)"
    )
    with bk.Loader(numbers(4).batch(2, collate=changing)) as loader, pytest.raises(bk.SchemaError, match=message):
        list(loader)


def test_other_leaves_are_refused() -> None:
    def changing(rows: list[Any]) -> Any:
        return {"y" if rows[0]["n"] else "x": 1}

    with (
        bk.Loader(numbers(4).batch(2, collate=changing)) as loader,
        pytest.raises(bk.SchemaError, match=r"step 1: the batch has the leaves \(y\), but .* it had \(x\)"),
    ):
        list(loader)


# --- whose the arrays are


@pytest.mark.parametrize("executor", ["inline", "processes"])  # threads would fill the one buffer at the same time
def test_a_buffer_that_is_filled_anew_at_each_call_leaves_batches_that_are_kept(executor: str) -> None:
    buffer = np.zeros(2, np.int64)

    def filled(rows: list[Any]) -> Any:
        buffer[:] = [row["n"] for row in rows]
        return {"n": buffer, "last": buffer[1:]}

    with bk.Loader(numbers(6).batch(2, collate=filled), executor=executor) as loader:
        kept = list(loader)
    assert lists(kept) == [{"n": run, "last": run[1:]} for run in cut(list(range(6)), 2)]


@every
def test_a_row_that_is_returned_as_it_is_leaves_the_data_alone(executor: str) -> None:
    data = [{"x": np.full(3, number)} for number in range(4)]
    with bk.Loader(bk.from_sequence(data).batch(2, collate=lambda rows: rows[0]), executor=executor) as loader:
        kept = list(loader)
    for batch in kept:
        batch["x"] += 100
    assert [row["x"].tolist() for row in data] == [[number] * 3 for number in range(4)]
    assert lists(kept) == [{"x": [100] * 3}, {"x": [102] * 3}]


@every
def test_a_view_of_the_rows_stays_as_it_is_while_the_loader_goes_on(executor: str) -> None:
    x = np.arange(4000).reshape(40, 100)
    pipe = bk.from_arrays({"x": x}).batch(4, collate=lambda rows: {"x": rows[-1]["x"][10:20]})
    with bk.Loader(pipe, executor=executor) as loader:
        kept = list(loader)
    assert [batch["x"].tolist() for batch in kept] == x[3::4, 10:20].tolist()


class Narrow:
    """A backend that has 32 bits only, and reads from aligned memory."""

    name = "narrow"
    alignment = 64

    def host_dtype(self, dtype: Any, leaf: str) -> Any:
        return np.dtype(np.int32) if dtype == np.int64 else dtype

    def device(self, device: Any) -> None:
        return None

    def allocate(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return aligned_empty(shape, dtype)

    def put(self, batch: Any, device: Any) -> Any:
        return batch

    def as_dataset(self, loader: Any) -> Any:
        return loader


@every
def test_a_backend_gets_what_it_wants_and_the_function_the_rows_as_they_are(executor: str) -> None:
    def shaped(rows: list[Any]) -> Any:
        assert rows[0]["n"].dtype == np.int64
        return {"n": np.array([row["n"] for row in rows])[:, None].repeat(1 + int(rows[0]["n"]), 1), "k": len(rows)}

    with bk.Loader(numbers(7).batch(3, collate=shaped), backend=Narrow(), executor=executor) as loader:
        batches = list(loader)
        assert {leaf.dtype for leaf in loader.schema.values()} == {np.dtype(np.int32)}
    assert [batch["n"].tolist() for batch in batches] == [
        [[n] * (1 + run[0]) for n in run] for run in cut(list(range(7)), 3)
    ]
    for leaf in (leaf for batch in batches for leaf in batch.values()):
        assert (leaf.dtype, leaf.ctypes.data % 64) == (np.dtype(np.int32), 0)


def test_batches_of_many_shapes_share_their_memory() -> None:
    slots = Slots(Narrow())
    for width in range(1, 50):
        slots.ready("x", np.zeros((3, width)).T, ("x", "ready"))
    assert len(slots._lessors) == 1


# --- what may stand behind it


@every
def test_a_map_behind_is_given_the_batch_and_may_change_every_shape(executor: str) -> None:
    def turned(batch: Any, by: int) -> Any:
        return {"x": batch["x"].T * by, "flat": batch["flat"][:1], "total": batch["total"] + 1, "new": 3}

    with bk.Loader(ragged().batch(3, collate=trimmed).map(turned, by=2), executor=executor) as loader:
        found = lists(loader)
    made = [made_of(run) for run in cut(ALL, 3)]
    assert found == [
        {
            "x": [[2 * value for value in column] for column in zip(*batch["x"], strict=True)],
            "flat": batch["flat"][:1],
            "total": batch["total"] + 1,
            "new": 3,
        }
        for batch in made
    ]


def test_columns_are_chosen_named_and_cast() -> None:
    batches = ragged().batch(3, collate=trimmed)
    pipe = batches.rename(x="padded").cast(padded="float32", total="int16").drop("flat").select("padded", "total")
    with bk.Loader(pipe) as loader:
        found = list(loader)
    assert lists(found) == [{"padded": made["x"], "total": made["total"]} for made in map(made_of, cut(ALL, 3))]
    assert {(batch["padded"].dtype.name, batch["total"].dtype.name) for batch in found} == {("float32", "int16")}


@pytest.mark.parametrize("make", [ragged, as_generator])
def test_batches_are_taken_left_out_and_repeated(make: Any) -> None:
    made = [made_of(run) for run in cut(ALL, 3)]
    with bk.Loader(make().batch(3, collate=trimmed).skip(1).take(2).repeat(2)) as loader:
        assert lists(loader) == made[1:3] * 2


BEHIND: dict[str, tuple[Callable[[bk.Pipeline], Any], str]] = {
    "shuffle": (lambda pipe: pipe.shuffle(), r"Put shuffle\(\) before batch\(\)"),
    "random_map": (lambda pipe: pipe.random_map(lambda batch, rng: batch), r"Put random_map\(\) before batch\(\)"),
    "filter": (lambda pipe: pipe.filter(bool), r"Put filter\(\) before batch\(\)"),
    "flat_map": (lambda pipe: pipe.flat_map(list), r"Put flat_map\(\) before batch\(\)"),
    "window": (lambda pipe: pipe.window(2), r"Put window\(\) before batch\(\)"),
    "pack": (lambda pipe: pipe.pack(2), r"Put pack\(\) before batch\(\)"),
    "cache": (lambda pipe: pipe.cache(), r"Put cache\(\) before batch\(\)"),
    "unbatch": (lambda pipe: pipe.unbatch(), r"Give batch\(\) the size that is wanted"),
    "rebatch": (lambda pipe: pipe.rebatch(2), r"Give batch\(\) the size that is wanted"),
    "batch": (lambda pipe: pipe.batch(2), r"Give batch\(\) the size that is wanted"),
    "padded_batch": (lambda pipe: pipe.padded_batch(2), r"Give batch\(\) the size that is wanted"),
    "bucket_batch": (lambda pipe: pipe.bucket_batch(2, boundaries=[2]), r"Give batch\(\) the size that is wanted"),
}


@pytest.mark.parametrize("verb", list(BEHIND))
def test_what_needs_rows_is_refused_behind_it_by_name_with_the_mend(verb: str) -> None:
    add, mend = BEHIND[verb]
    said = rf"^{verb}\(.* cannot follow batch\(size=3, collate=.*trimmed\): .*has no rows any more\. {mend}"
    with pytest.raises(bk.PipelineError, match=said):
        add(ragged().batch(3, collate=trimmed).map(dict))


@pytest.mark.parametrize("combine", [bk.mix, bk.concat, bk.zip, bk.interleave])
def test_it_cannot_be_a_part_of_a_combination(combine: Any) -> None:
    with pytest.raises(
        bk.PipelineError, match=r"part 0 ends in batches, and rows are combined: .* batch behind \w+\(\)$"
    ):
        combine([ragged().batch(3, collate=trimmed), ragged()])


def test_what_cannot_be_is_refused_when_it_is_written() -> None:
    with pytest.raises(bk.PipelineError, match=r"remainder='pad' has no rows to fill up. Fill up in the function"):
        ragged().batch(3, remainder="pad", collate=trimmed)
    with pytest.raises(bk.PipelineTypeError, match=r"batch\(collate\) must be a function or its name .*, not a int"):
        ragged().batch(3, collate=3)  # type: ignore[arg-type]
    with pytest.raises(bk.PipelineError, match=r"batch\(collate\) 'no_colon' is not of the form 'module:name'"):
        ragged().batch(3, collate="no_colon")
    for verb in ("padded_batch", "rebatch"):
        with pytest.raises(TypeError, match="collate"):
            getattr(ragged(), verb)(3, collate=trimmed)
        with pytest.raises(bk.PipelineError, match=rf"{verb}\(\) has no argument 'collate'"):
            STAGES[verb].from_arguments({"size": 3, "collate": trimmed})
