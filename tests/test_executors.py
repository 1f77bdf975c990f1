"""What holds for every executor alike: the same batches in the same order, the same errors; the oracle is NumPy."""

from __future__ import annotations

import itertools
import json
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from executors import AHEAD, assert_batches, cases, drawn, every, loaded, noise, noisy, numbers, runs, values

import batchkit as bk

# -- order and contents


@pytest.mark.parametrize("name", list(cases()))
@pytest.mark.parametrize(("executor", "workers"), [("inline", 0), *itertools.product(AHEAD, (1, 2, 3))], ids=str)
def test_order_and_contents_are_the_same_for_any_number_of_workers(executor: str, workers: int, name: str) -> None:
    case = cases()[name]
    with loaded(case.pipe, executor, max(workers, 1)) as loader:
        for epoch in range(2):
            assert_batches(loader, case.wanted(epoch))


@every
def test_a_random_transform_gives_a_row_the_same_at_any_batch_size_and_number_of_ranks(executor: str) -> None:
    rows = 300
    data = bk.from_arrays({"n": np.arange(rows)}).shuffle(3)
    table = drawn(data, 1)
    assert len({one for one, _ in table.values()}) == rows
    for size, world in itertools.product((7, 256), (1, 4)):
        seen: list[int] = []
        for rank in range(world):
            with loaded(noisy(data, size), executor, shard=(rank, world)) as loader:
                for batch in loader.iterate(1):
                    ids = batch["n"].tolist()
                    seen += ids
                    assert_batches([batch], [{"n": np.array(ids, np.int64), **_shaped(noise(ids, table), len(ids))}])
        assert sorted(seen) == list(range(rows))


def _shaped(found: dict[str, Any], rows: int) -> dict[str, Any]:
    """Return the same where a rank has no row of a batch, too."""
    return {"one": found["one"].reshape(rows), "two": found["two"].reshape(rows, 2)}


@every
def test_batches_of_named_tuples_are_of_the_callers_own_class(executor: str) -> None:
    class Pair(NamedTuple):
        x: Any
        y: Any

    given = [
        bk.from_arrays(Pair(np.arange(6), np.arange(6) * 2)).batch(3),
        bk.from_sequence([Pair(row, row * 2) for row in range(6)]).batch(3),
        bk.from_generator(lambda: (Pair(row, row * 2) for row in range(6))).map(lambda row: row).batch(3),
        numbers(6).batch(3).map(lambda batch: Pair(batch["x"], batch["x"] * 2)),
    ]
    for pipe in given:
        with loaded(pipe, executor, 1) as loader:
            batches = list(loader)
        assert [type(batch) for batch in batches] == [Pair, Pair]
        assert [(batch.x.tolist(), batch.y.tolist()) for batch in batches] == [
            ([0, 1, 2], [0, 2, 4]),
            ([3, 4, 5], [6, 8, 10]),
        ]


@every
def test_a_path_is_that_of_the_file_it_named_when_the_pipeline_was_made(
    executor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    np.save(tmp_path / "x.npy", np.arange(10))
    np.save(tmp_path / "elsewhere" / "x.npy", np.arange(10) + 100)
    monkeypatch.chdir(tmp_path)
    pipe = bk.from_npy({"x": "x.npy"}).batch(5)
    monkeypatch.chdir("elsewhere")
    with loaded(pipe, executor) as loader:
        assert values(loader) == runs(10, 5)


@every
def test_an_entry_of_the_path_that_python_ignores_does_no_harm(
    executor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [tmp_path, *sys.path])
    with loaded(numbers(10).map(lambda row: row).batch(5), executor) as loader:
        assert values(loader) == runs(10, 5)


# -- exceptions


def failing(kind: str) -> tuple[bk.Pipeline, str]:
    """Return a pipeline that fails at row 7, in the third batch of three rows, and what the error must say."""

    def fails_at_seven(row: Any) -> Any:
        if np.any(row["x"] == 7):
            raise RuntimeError("seven is bad")
        return row

    def draws_at_seven(row: Any, rng: Any) -> Any:
        return {**fails_at_seven(row), "r": rng.random()}

    class FailsAtSeven:
        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int) -> Any:
            return fails_at_seven({"x": index})

    counting = bk.from_generator(lambda: ({"x": row} for row in range(12)))
    return {
        "row function": (numbers(12).map(fails_at_seven).batch(3), r"stage 0 map\(.*fails_at_seven\) failed on row 7"),
        "batch function": (
            numbers(12).batch(3).map(fails_at_seven),
            r"stage 1 map\(.*fails_at_seven\) failed on rows \[6, 7, 8\]",
        ),
        "random row function": (
            numbers(12).random_map(draws_at_seven).batch(3),
            r"stage 0 random_map\(.*draws_at_seven.*\) failed on row 7",
        ),
        "function behind a generator": (counting.map(fails_at_seven).batch(3), r"stage 0 map\(.*\) failed on row 7"),
        "source": (bk.from_sequence(FailsAtSeven()).batch(3), "reading row 7 of the sequence failed"),
    }[kind]


FAILURES = ("row function", "batch function", "random row function", "function behind a generator", "source")


@every
@pytest.mark.parametrize("kind", FAILURES)
def test_an_exception_arrives_with_step_stage_rows_and_the_workers_traceback(executor: str, kind: str) -> None:
    pipe, says = failing(kind)
    with loaded(pipe, executor) as loader:
        iterator = iter(loader)
        assert values(itertools.islice(iterator, 2)) == [[0, 1, 2], [3, 4, 5]]
        with pytest.raises(
            (bk.StageError, bk.SourceError), match=rf"^epoch 0, step 2: .*{says}: RuntimeError: seven is bad$"
        ) as caught:
            next(iterator)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert "in fails_at_seven" in "".join(traceback.format_exception(caught.value))


@every
@pytest.mark.parametrize("kind", FAILURES)
def test_after_an_exception_the_loader_goes_on_with_the_next_step(executor: str, kind: str) -> None:
    pipe, _ = failing(kind)
    with loaded(pipe, executor) as loader:
        for epoch in range(2):
            iterator = iter(loader)
            assert values(itertools.islice(iterator, 2)) == [[0, 1, 2], [3, 4, 5]]
            with pytest.raises(bk.BatchkitError, match=f"epoch {epoch}, step 2: "):
                next(iterator)
            assert (loader.state_dict()["epoch"], loader.state_dict()["step"]) == (epoch, 2)
            assert values(iterator) == [[9, 10, 11]]
            assert (loader.state_dict()["epoch"], loader.state_dict()["step"]) == (epoch + 1, 0)


@every
def test_a_generator_that_raises_is_named_and_the_next_epoch_starts_anew(executor: str) -> None:
    broken = [True]

    def rows() -> Any:
        for value in range(10):
            if value == 6 and broken:
                broken.clear()
                raise OSError("disk gone")
            yield {"x": value}

    with loaded(bk.from_generator(rows).batch(2), executor) as loader:
        got: list[Any] = []
        with pytest.raises(bk.SourceError, match=r"rows\) raised after 6 rows: OSError: disk gone") as caught:
            got.extend(batch["x"].tolist() for batch in loader)
        assert isinstance(caught.value.__cause__, OSError)
        assert got == [[0, 1], [2, 3], [4, 5]]
        assert values(loader) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


@every
@pytest.mark.parametrize("place", ["before batch", "behind batch", "behind a generator"])
def test_stop_iteration_in_a_function_is_an_error_not_a_shorter_epoch(executor: str, place: str) -> None:
    def stops(row: Any) -> Any:
        return next(iter(()))

    pipe = {
        "before batch": numbers().map(stops).batch(4),
        "behind batch": numbers().batch(4).map(stops),
        "behind a generator": bk.from_generator(lambda: ({"x": row} for row in range(9))).map(stops).batch(4),
    }[place]
    with loaded(pipe, executor) as loader, pytest.raises(bk.StageError, match=r"StopIteration.*next"):
        list(loader)


@every
def test_an_exception_that_cannot_be_pickled_arrives_in_words(executor: str) -> None:
    def fails(row: Any) -> Any:
        class AwkwardError(Exception):
            def __init__(self, one: int, two: int) -> None:
                super().__init__(f"{one} and {two}")
                self.lock = threading.Lock()

        raise AwkwardError(1, 2)

    with (
        loaded(numbers(4).map(fails).batch(2), executor) as loader,
        pytest.raises(bk.StageError, match="failed on row 0: AwkwardError: 1 and 2"),
    ):
        list(loader)


# -- several threads


def consumed(threads: int, consume: Callable[[], None]) -> None:
    workers = [threading.Thread(target=consume) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


@every
def test_threads_that_share_an_iterator_get_every_batch_exactly_once(executor: str) -> None:
    with loaded(numbers(500).shuffle(1).map(lambda row: row).batch(1), executor, 3) as loader:
        iterator = iter(loader)
        got: list[list[int]] = []

        def consume() -> None:
            mine = [int(batch["x"][0]) for batch in iterator]
            got.append(mine)

        consumed(4, consume)
    assert sorted(itertools.chain(*got)) == list(range(500))


@every
def test_each_of_the_threads_gets_its_batches_in_order(executor: str) -> None:
    with loaded(numbers(500).map(lambda row: row).batch(1), executor, 3) as loader:
        iterator = iter(loader)
        got: list[list[int]] = []

        def consume() -> None:
            mine = [int(batch["x"][0]) for batch in iterator]
            got.append(mine)

        consumed(4, consume)
    assert got == [sorted(mine) for mine in got]


@every
def test_threads_that_iterate_over_the_loader_join_its_epoch(executor: str) -> None:
    with loaded(numbers(300).batch(1), executor) as loader:
        got: list[int] = []
        started = threading.Barrier(3)

        def consume() -> None:
            iterator = iter(loader)
            started.wait()
            got.extend(int(batch["x"][0]) for batch in iterator)

        consumed(3, consume)
        assert sorted(got) == list(range(300))
        assert loader.epoch == 1


@every
def test_threads_that_share_an_iterator_share_its_errors(executor: str) -> None:
    def odd_ones_fail(row: Any) -> Any:
        if row["x"] % 10 == 3:
            raise ValueError("odd")
        return row

    with loaded(numbers(200).map(odd_ones_fail).batch(1), executor, 3) as loader:
        iterator = iter(loader)
        got: list[Any] = []

        def consume() -> None:
            while True:
                try:
                    got.append(int(next(iterator)["x"][0]))
                except StopIteration:
                    return
                except bk.StageError as exc:
                    got.append(int(str(exc).partition("failed on row ")[2].partition(":")[0]))

        consumed(3, consume)
    assert sorted(got) == list(range(200))


# -- bad rows and damaged files


BAD = (3, 10, 11)
WITHOUT_BAD = [[0, 1, 2], [4, 5, 6, 7], [8, 9], [12, 13, 14, 15], [16, 17, 18, 19]]


def with_bad_rows(place: str) -> bk.Pipeline:
    """Return twenty rows of which three cannot be had, in batches of four."""
    bad = BAD

    class Damaged:
        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int) -> Any:
            if index in bad:
                raise OSError(f"bad sector {index}")
            return {"x": index}

    def checked(row: Any) -> Any:
        if int(row["x"]) in bad:
            raise ValueError(f"{row['x']} is bad")
        return row

    counting = bk.from_generator(lambda: ({"x": row} for row in range(20)))
    return {
        "function": numbers(20).map(checked).batch(4),
        "source": bk.from_sequence(Damaged()).batch(4),
        "function behind a generator": counting.map(checked).batch(4),
    }[place]


places = pytest.mark.parametrize("place", ["function", "source", "function behind a generator"])


@every
@places
def test_a_bad_row_is_an_error_that_names_it_unless_told_otherwise(place: str, executor: str) -> None:
    with loaded(with_bad_rows(place), executor, on_error="raise") as loader:
        found: list[str] = []
        iterator = iter(loader)
        for _ in range(5):
            try:
                next(iterator)
            except (bk.StageError, bk.SourceError) as exc:
                found.append(str(exc))
    assert [text.partition(": ")[0] for text in found] == ["epoch 0, step 0", "epoch 0, step 2"]
    assert all(f"row {row}" in text for row, text in zip((3, 10), found, strict=True))
    assert all(f"sector {row}" in text or f"{row} is bad" in text for row, text in zip((3, 10), found, strict=True))


@every
@places
def test_a_row_left_out_makes_its_batch_smaller_moves_no_other_and_is_counted(place: str, executor: str) -> None:
    with loaded(with_bad_rows(place), executor, on_error=bk.Skip(budget=3)) as loader:
        for epoch in range(2):
            assert values(loader) == WITHOUT_BAD
            assert loader.skipped == 3 * (epoch + 1)


@every
@places
def test_every_row_left_out_is_a_line_in_the_log(place: str, executor: str, tmp_path: Path) -> None:
    log = tmp_path / "skipped.jsonl"
    with loaded(with_bad_rows(place), executor, on_error=bk.Skip(budget=0.2, log=str(log))) as loader:
        list(loader)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    kind = {"function": "arrays", "source": "sequence", "function behind a generator": "generator"}[place]
    assert [(line["epoch"], line["step"], line["row"], line["source"]) for line in lines] == [
        (0, step, row, kind) for step, row in ((0, 3), (2, 10), (2, 11))
    ]
    assert {line["where"] for line in lines} == {"the source" if place == "source" else "a function"}
    says = "bad sector 3" if place == "source" else "checked) failed on row 3: ValueError: 3 is bad"
    assert says in lines[0]["error"]


@every
@places
def test_beyond_the_budget_is_an_error_that_names_row_and_mend(place: str, executor: str) -> None:
    with loaded(with_bad_rows(place), executor, on_error=bk.Skip(budget=2)) as loader:
        iterator = iter(loader)
        assert values(itertools.islice(iterator, 2)) == WITHOUT_BAD[:2]
        with pytest.raises(
            bk.StageError, match=r"epoch 0, step 2: 3 rows were left out, and on_error allows 2.*last was row 11.*Mend"
        ):
            next(iterator)
        assert values(iterator) == WITHOUT_BAD[3:]


@every
@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "no magic number", "pickled objects"])
def test_a_damaged_npy_file_is_an_error_that_names_file_and_mend(
    damage: str, on_error: str, executor: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.npy"
    objects = damage == "pickled objects"
    np.save(path, np.array([{}, None]) if objects else np.arange(100.0), allow_pickle=objects)
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[:-80], "empty": b"", "no magic number": b"?" + whole[1:]}.get(damage, whole))
    mend = {"truncated": "Write or download the file again", "pickled objects": "Save it anew as numbers"}
    with pytest.raises(bk.CorruptSourceError, match=rf"^{path} .*{mend.get(damage, 'is not a .npy file')}"):
        loaded(bk.from_npy({"x": path}).batch(10), executor, on_error=on_error)
