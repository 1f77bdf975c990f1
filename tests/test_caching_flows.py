"""cache() behind stages that are cut in order: what comes is kept under its number, and served from there on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from click.testing import CliRunner
from executors import EXECUTORS
from test_caching_stages import CALLS, assert_same, data, doubled, epochs, jitter, noise, odd, odd_rows, ragged, thrice

import batchkit as bk
from batchkit.caching import files as caching_files
from batchkit.caching import folder as caching_folder
from batchkit.caching.reached import NOTE, read_reached
from batchkit.cli import main

ROWS = 23
WORLD = 3


@pytest.fixture(autouse=True)
def no_calls() -> None:
    CALLS.clear()


@pytest.fixture(params=["memory", "disk"])
def where(request: Any, tmp_path: Path) -> Any:
    """Where rows are kept: the argument of cache()."""
    return None if request.param == "memory" else tmp_path / "kept"


class Generated:
    """Yields rows, and counts them; told from others by ``rows`` alone."""

    def __init__(self, rows: int = ROWS) -> None:
        self.rows = rows

    def __call__(self) -> Iterator[Any]:
        calls = globals()["CALLS"]  # not by its name: what a function refers to is part of what rows are told by
        for number in range(self.rows):
            calls.append(number)
            yield {"n": number, "x": np.float32(number) * np.ones(3, np.float32)}


def generated(rows: int = ROWS) -> bk.Pipeline:
    return bk.from_generator(Generated(rows))


def generated_batches() -> Iterator[Any]:
    for number in range(6):
        yield {"n": np.arange(5) + 5 * number, "x": np.full((5, 2), number, np.float32)}


def told(row: Any) -> Any:
    number = int(row["n"])
    return {"n": row["n"], "t": "ab" * (number % 4), "b": b"cd" * (number % 3), "deep": (row["x"], {"one": number > 3})}


def sequence(row: Any) -> Any:
    return {"t": row["t"] + 1, "k": np.full(2, len(row["t"]))}


def plus_mean(batch: Any) -> Any:
    return {**batch, "mean": np.full(len(batch["n"]), batch["n"].sum() / max(len(batch["n"]), 1))}


def long(row: Any) -> bool:
    return len(row["t"]) > 1


class Case(NamedTuple):
    before: Callable[[], bk.Pipeline]
    behind: Callable[[bk.Pipeline], bk.Pipeline]


def rows_behind(pipe: bk.Pipeline) -> bk.Pipeline:
    return pipe.random_map(jitter).shuffle(3, window=5).batch(6)


def batches_behind(pipe: bk.Pipeline) -> bk.Pipeline:
    return pipe.random_map(noise)


FLOWS = {
    "generator": Case(generated, rows_behind),
    "generator, padded": Case(generated, lambda pipe: pipe.batch(6, remainder="pad").random_map(noise)),
    "generator of batches": Case(lambda: bk.from_generator(generated_batches, batched=True), batches_behind),
    "text": Case(lambda: generated().map(told).filter(odd), lambda pipe: pipe.map(dict).batch(6)),
    "map of a generator": Case(lambda: generated().map(doubled), lambda pipe: pipe.filter(odd).batch(3)),
    "filter": Case(lambda: data().shuffle(1, reshuffle=False).filter(odd), rows_behind),
    "flat_map": Case(lambda: data().flat_map(thrice), rows_behind),
    "flat_map twice": Case(lambda: data().flat_map(thrice).take(17).cache().flat_map(thrice), rows_behind),
    "windows": Case(lambda: data().filter(odd).window(3, stride=1), rows_behind),
    "windows behind": Case(lambda: generated(), lambda pipe: pipe.window(4, stride=2, remainder="pad").batch(3)),
    "windows inside": Case(
        lambda: data().map(lambda row: {"x": row["x"]}).window(2, inside=True), lambda pipe: pipe.batch(6)
    ),
    "pack": Case(lambda: ragged().pack(12), lambda pipe: pipe.random_map(jitter).batch(3)),
    "pack of bins": Case(lambda: ragged().map(sequence).select("t").pack(7, bins=3), lambda pipe: pipe.batch(3)),
    "packed behind": Case(lambda: ragged().filter(long), lambda pipe: pipe.pack(12).batch(3, remainder="drop")),
    "rows of varying shape": Case(
        lambda: ragged().map(sequence).filter(long), lambda pipe: pipe.padded_batch(6, lengths=True)
    ),
    "buckets behind": Case(
        lambda: ragged().map(sequence).filter(long), lambda pipe: pipe.bucket_batch(3, boundaries=[3, 5], length="t")
    ),
    "bucket_batch": Case(lambda: ragged().bucket_batch(6, boundaries=[2, 5], remainder="pad"), batches_behind),
    "bucket_batch of the longest": Case(
        lambda: ragged().map(sequence).bucket_batch(6, boundaries=[2, 5], length="t", pad_to="longest"), batches_behind
    ),
    "bucket_batch taken apart": Case(
        lambda: ragged().map(sequence).bucket_batch(6, boundaries=[2, 6], length="t", lengths=True),
        lambda pipe: pipe.unbatch().select("k").batch(6),
    ),
    "batch": Case(lambda: generated().batch(6).map(plus_mean), batches_behind),
    "batch of packed rows": Case(lambda: ragged().pack(12).batch(3), lambda pipe: pipe.take(2).repeat(2)),
    "padded_batch": Case(lambda: ragged().map(sequence).filter(long).padded_batch(6), batches_behind),
    "filled up": Case(lambda: data().filter(odd).batch(6, remainder="pad"), batches_behind),
    "batches filtered": Case(lambda: generated().batch(6).filter(odd_rows), lambda pipe: pipe.map(plus_mean)),
    "batches taken apart": Case(
        lambda: data().batch(5).filter(odd_rows).rebatch(4).map(plus_mean), lambda pipe: pipe.rebatch(6)
    ),
    "batches twice": Case(lambda: generated().batch(6).cache().map(plus_mean), lambda pipe: pipe.skip(1)),
    "repeated": Case(lambda: generated().repeat(2), rows_behind),
    "repeated behind": Case(lambda: data().flat_map(thrice).skip(2), lambda pipe: pipe.repeat(3).take(40).batch(6)),
    "concat": Case(lambda: bk.concat([data(), generated().filter(odd).repeat(2)]), rows_behind),
    "mix": Case(lambda: bk.mix([data().filter(odd), generated()], weights=[2, 1], stop="all"), rows_behind),
    "zip": Case(lambda: bk.zip({"a": data(), "b": generated()}), rows_behind),
    "a part": Case(
        lambda: data().filter(odd), lambda pipe: rows_behind(bk.interleave([pipe, generated().select("n", "x")]))
    ),
    "numbered and not": Case(lambda: data().map(doubled).cache().filter(odd).cache(), rows_behind),
}
SOME = ["generator", "filter", "pack", "bucket_batch", "batch", "padded_batch", "rows of varying shape", "concat"]


def kept(name: str, where: Any = None) -> bk.Pipeline:
    return FLOWS[name].behind(FLOWS[name].before().cache(where))


def plain(name: str) -> bk.Pipeline:
    return FLOWS[name].behind(FLOWS[name].before())


def only(path: Path) -> Path:
    """Return the folder of the only cache."""
    (folder,) = (entry for entry in path.iterdir() if entry.is_dir())
    return folder


# -- what it gives


@pytest.mark.parametrize("name", FLOWS)
def test_batches_are_what_they_are_without_a_cache(name: str, where: Any) -> None:
    wanted = epochs(plain(name), 3)
    assert sum(map(len, wanted)) > 2
    assert_same(epochs(kept(name, where), 3), wanted)
    assert_same(epochs(kept(name, where), 3), wanted)  # with a path, all is there now


@pytest.mark.parametrize("name", FLOWS)
def test_every_rank_gets_what_it_gets_without_a_cache(name: str, where: Any) -> None:
    for rank in range(WORLD):
        wanted = epochs(plain(name), 2, shard=(rank, WORLD))
        assert_same(epochs(kept(name, where), 2, shard=(rank, WORLD)), wanted)
        assert_same(epochs(kept(name, where), 1, shard=(rank, WORLD)), wanted[:1])


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("name", ["generator", "filter", "batch", "pack", "batches taken apart"])
def test_every_executor_gives_the_same(name: str, executor: str, where: Any) -> None:
    wanted = epochs(plain(name), 2)
    assert_same(epochs(kept(name, where), 2, executor=executor), wanted)
    assert_same(epochs(kept(name, where), 2, executor=executor), wanted)


def test_rows_have_one_form_whether_they_were_kept_or_come_first() -> None:
    seen: list[Any] = []

    def look(row: Any) -> Any:
        seen.append((type(row["n"]), type(row["x"]), row["x"].dtype))
        return row

    epochs(generated().cache().map(look).batch(4), 2)  # a Python int goes in
    assert set(seen) == {(np.int64, np.ndarray, np.dtype(np.float32))}


def test_a_function_behind_that_changes_rows_in_place_does_not_reach_what_is_kept(where: Any) -> None:
    def change(row: Any) -> Any:
        row["x"] += 1
        return row

    def change_all(batch: Any) -> Any:
        batch["x"] += 1
        return batch

    for pipe in (generated().cache(where).map(change).batch(4), generated().batch(4).cache(where).map(change_all)):
        first, *others = epochs(pipe, 3)
        for other in others:
            assert_same(other, first)


def test_what_is_random_before_is_frozen_as_it_is_in_the_first_epoch(where: Any) -> None:
    before = generated().random_map(jitter).shuffle(2, window=6)
    with pytest.warns(bk.CacheWarning, match="stage 0 random_map.*of the first epoch"):
        pipe = before.cache(where).batch(4)
    wanted = epochs(before.batch(4))[0]
    assert_same(epochs(pipe, 3), [wanted] * 3)
    assert_same(epochs(pipe, 1), [wanted])


# -- once


@pytest.mark.parametrize("executor", ["inline", "threads", "processes", "auto"])
def test_a_generator_is_read_once(executor: str, where: Any) -> None:
    epochs(generated().cache(where).map(doubled).batch(4), 3, executor=executor)
    assert list(range(ROWS)) == CALLS


@pytest.mark.parametrize(
    "before",
    [
        lambda: generated().filter(odd),
        lambda: generated().flat_map(thrice),
        lambda: generated().window(3),
        lambda: generated().map(lambda row: {"t": np.arange(row["n"] % 5)}).pack(9),
        lambda: generated().map(lambda row: {"t": np.arange(row["n"] % 5)}).bucket_batch(3, boundaries=[2, 5]),
        lambda: generated().batch(4).map(plus_mean),
        lambda: generated().repeat(2).take(ROWS),
        lambda: bk.zip((generated(), data())),
    ],
)
def test_the_second_epoch_calls_nothing_before_it(before: Callable[[], bk.Pipeline], where: Any) -> None:
    pipe = before().cache(where)
    pipe = pipe if pipe.batched else pipe.batch(4)
    with bk.Loader(pipe, executor="inline") as loader:
        first = list(loader)
        assert list(range(ROWS)) == CALLS
        assert_same([list(loader), list(loader)], [first, first])
        assert list(range(ROWS)) == CALLS


def test_each_row_is_computed_once_where_several_passes_are_made_behind_it(where: Any) -> None:
    epochs(generated().cache(where).repeat(3).batch(4), 2)
    assert list(range(ROWS)) == CALLS


def test_what_nobody_asks_for_is_not_read(where: Any) -> None:
    epochs(generated().cache(where).take(8).batch(4), 3)
    assert list(range(8)) == CALLS


def test_an_epoch_broken_off_is_gone_on_with_where_the_next_one_comes_to_its_end(where: Any) -> None:
    calls: list[int] = []

    def counted(row: Any) -> bool:
        calls.append(int(row["n"]))
        return bool(row["n"] % 2)

    pipe = bk.from_arrays({"n": np.arange(1600)}).filter(counted).cache(where).batch(8)
    with bk.Loader(pipe, executor="inline") as loader:
        first = next(iter(loader))
        done = len(calls)
        assert 0 < done < 400
        whole = list(loader.iterate(0))
        assert len(calls) < 1600 + 400  # only the chunk in which it stood is computed again
    assert_same(whole[0], first)
    assert_same([whole], epochs(bk.from_arrays({"n": np.arange(1600)}).filter(counted).batch(8)))


def test_a_generator_with_a_state_of_its_own_goes_on_there(where: Any) -> None:
    class Rows:
        def __init__(self) -> None:
            self.at = 0

        def __iter__(self) -> Rows:
            return self

        def __next__(self) -> Any:
            if self.at == ROWS:
                raise StopIteration
            CALLS.append(self.at)
            self.at += 1
            return {"n": self.at}

        def state_dict(self) -> Any:
            return {"at": self.at}

        def load_state_dict(self, state: Any) -> None:
            self.at = state["at"]

    pipe = bk.from_generator(Rows).cache(where).batch(4)
    with bk.Loader(pipe, executor="inline") as loader:
        for _, _ in zip(range(3), loader, strict=False):
            pass
        assert_same(list(loader)[-1], {"n": np.array([21, 22, 23])})
    assert list(range(ROWS)) == CALLS


# -- states


def left(pipe: bk.Pipeline, step: int) -> tuple[Any, list[Any]]:
    """Return the state behind some steps of the first epoch, and what comes then."""
    with bk.Loader(pipe, executor="inline") as loader:
        rest = iter(loader)
        for _ in range(step):
            next(rest)
        return json.loads(json.dumps(loader.state_dict())), [*rest, *loader]


@pytest.mark.parametrize("name", [*SOME, "flat_map twice", "windows behind", "packed behind", "mix", "batches twice"])
def test_a_run_goes_on_from_every_step_whatever_is_kept(name: str, tmp_path: Path) -> None:
    whole = epochs(plain(name), 2)
    epochs(kept(name, tmp_path / "complete"))
    for step in range(1, len(whole[0])):
        state, rest = left(kept(name), step)
        wanted = [*whole[0][step:], *whole[1]]
        assert_same(rest, wanted)
        shutil.rmtree(tmp_path / "partial", ignore_errors=True)
        left_at, _ = _stopped(kept(name, tmp_path / "partial"), max(step - 1, 1))
        assert left_at["step"] == max(step - 1, 1)
        for path in (None, tmp_path / "empty" / str(step), tmp_path / "partial", tmp_path / "complete"):
            with bk.Loader(kept(name, path), executor="inline") as loader:
                loader.load_state_dict(state)
                assert_same([*loader, *loader], wanted)


def _stopped(pipe: bk.Pipeline, steps: int) -> tuple[Any, list[Any]]:
    with bk.Loader(pipe, executor="inline") as loader:
        got = [batch for _, batch in zip(range(steps), loader, strict=False)]
        return loader.state_dict(), got


@pytest.mark.parametrize("name", SOME)
def test_the_state_is_one_whatever_is_kept_and_on_every_rank(name: str, tmp_path: Path) -> None:
    steps = len(epochs(plain(name))[0])
    for step in range(1, steps):
        states = [_stopped(kept(name), step)[0], _stopped(kept(name, tmp_path / "kept"), step)[0]]
        for rank in range(WORLD):
            with bk.Loader(kept(name, tmp_path / "kept"), executor="inline", shard=(rank, WORLD)) as loader:
                for _, _ in zip(range(step), loader, strict=False):
                    pass
                states.append(loader.state_dict())
        assert all(state == states[0] for state in states)
        assert len(json.dumps(states[0])) < 1000


def test_the_state_behind_a_cache_is_a_number(tmp_path: Path) -> None:
    state, _ = _stopped(ragged().map(sequence).select("t").pack(7, bins=3).cache(tmp_path).batch(2), 2)
    assert state["walk"]["at"] == 4


def test_another_world_goes_on_where_one_stopped(where: Any) -> None:
    for name in SOME:
        state, _ = _stopped(kept(name, where), 1)
        for rank in range(WORLD):
            wanted = epochs(plain(name), 2, shard=(rank, WORLD))
            with bk.Loader(kept(name, where), executor="inline", shard=(rank, WORLD)) as loader:
                loader.load_state_dict(state)
                assert_same([list(loader), list(loader)], [wanted[0][1:], wanted[1]])


def test_a_state_saved_when_all_was_kept_goes_on_where_the_cache_was_deleted(tmp_path: Path) -> None:
    pipe = generated().cache(tmp_path).batch(4)
    with bk.Loader(pipe, executor="inline") as loader:
        second = (list(loader), list(loader))[1]
        for _, _ in zip(range(3), loader, strict=False):
            pass
        state = loader.state_dict()
    shutil.rmtree(tmp_path)
    CALLS.clear()
    with bk.Loader(pipe, executor="inline") as loader:
        loader.load_state_dict(state)
        assert_same(list(loader), second[3:])
        assert list(range(ROWS)) == CALLS  # what is not kept is read from the beginning, and kept
        assert_same(list(loader), second)
        assert list(range(ROWS)) == CALLS


def test_a_state_behind_more_rows_than_there_are_is_refused(where: Any) -> None:
    state, _ = _stopped(generated(20).cache().batch(4), 5)
    with bk.Loader(generated(9).cache(where).batch(4), executor="inline") as loader:
        state["pipeline"] = loader.state_dict()["pipeline"]
        for _ in range(2):  # before the end of the rows was seen, and after
            loader.load_state_dict(state)
            with pytest.raises(bk.StateError, match=r"stage 0 cache\(.*number 20 is asked for, but there are only 9"):
                list(loader)


@pytest.mark.parametrize("at", [-1, 2.5, "3", [1]])
def test_a_damaged_state_is_refused(at: Any) -> None:
    pipe = generated().cache().batch(4)
    state, _ = _stopped(pipe, 2)
    state["walk"] = {"at": at, "check": zlib.crc32(json.dumps([0, 2, at], sort_keys=True).encode())}
    with bk.Loader(pipe, executor="inline") as loader:
        loader.load_state_dict(state)
        with pytest.raises(bk.StateError, match="does not fit the pipeline's stages"):
            list(loader)


# -- other processes, and their ends

CHILD = """
import os, sys, time
import numpy as np
import batchkit as bk

def rows():
    for number in range(400):
        if number == int(sys.argv[2]):
            print("stopped", flush=True)
            time.sleep(600)
        yield {"n": number, "x": np.arange(number % 5)}

def odd(row):
    return bool(row["n"] % 2)

def pipe(path):
    return bk.from_generator(rows).filter(odd).cache(path).padded_batch(8)

if __name__ == "__main__":
    with bk.Loader(pipe(sys.argv[1]), executor="inline") as loader:
        for batch in loader:
            print(*batch["n"], flush=True)
"""


def _script(tmp_path: Path) -> Path:
    script = tmp_path / "child.py"
    script.write_text(textwrap.dedent(CHILD))
    return script


def _child(script: Path, path: Path, stop: int = -1) -> subprocess.Popen[str]:
    command = [sys.executable, str(script), str(path), str(stop)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _wanted() -> list[str]:
    numbers = [number for number in range(400) if number % 2]
    return [" ".join(map(str, numbers[start : start + 8])) for start in range(0, len(numbers), 8)]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_what_a_killed_process_has_kept_is_gone_on_with(tmp_path: Path) -> None:
    script, path = _script(tmp_path), tmp_path / "kept"
    for stop in (300, -1):
        with _child(script, path, stop) as child:
            assert child.stdout is not None
            lines = []
            for line in child.stdout:
                if line.strip() == "stopped":
                    os.kill(child.pid, signal.SIGKILL)
                else:
                    lines.append(line.strip())
        assert lines == _wanted()[: len(lines)]
        assert (len(lines) == len(_wanted())) == (stop < 0)
        if stop > 0:
            reached = read_reached(only(path))
            assert 0 < reached.number < 200
            assert reached.rows is None
    assert read_reached(only(path)).complete
    assert caching_folder.verified(only(path)).sound


def test_two_processes_fill_one_cache_together(tmp_path: Path) -> None:
    script, path = _script(tmp_path), tmp_path / "kept"
    with _child(script, path) as one, _child(script, path) as two:
        outputs = [one.communicate()[0], two.communicate()[0]]
    assert [output.split("\n")[:-1] for output in outputs] == [_wanted()] * 2
    assert read_reached(only(path)).complete
    assert caching_folder.verified(only(path)).sound
    assert caching_folder.described(only(path)).stored == 200


def test_several_iterations_of_one_loader_fill_one_cache_together(where: Any) -> None:
    pipe = data().flat_map(thrice).cache(where).batch(4)
    (wanted,) = epochs(data().flat_map(thrice).batch(4))
    with bk.Loader(pipe, executor="inline") as loader:
        iterators = [loader.iterate(0), loader.iterate(1), loader.iterate(2)]
        got: list[list[Any]] = [[], [], []]
        for turn in range(3 * len(wanted)):
            which = (turn * 7 + turn // 3) % 3
            got[which] += [batch for batch in [next(iterators[which], None)] if batch is not None]
        for which, iterator in enumerate(iterators):
            got[which] += iterator
        assert_same(got, [wanted] * 3)


# -- damage


def _files(path: Path) -> list[Path]:
    return sorted(entry for entry in only(path).iterdir() if entry.is_file())


def _cut(file: Path, share: float) -> None:
    os.truncate(file, int(file.stat().st_size * share))


def _flip(file: Path, share: float) -> None:
    content = bytearray(file.read_bytes())
    content[int((len(content) - 1) * share)] ^= 4
    file.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut off": lambda file: _cut(file, 0.9),
    "cut short": lambda file: _cut(file, 0.4),
    "emptied": lambda file: _cut(file, 0),
    "flipped": lambda file: _flip(file, 0.5),
    "flipped at the end": lambda file: _flip(file, 1),
    "flipped at the beginning": lambda file: _flip(file, 0.01),
    "deleted": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["rows of varying shape", "generator", "batch"])
def test_a_damaged_file_is_noticed_and_its_rows_are_computed_again(name: str, damage: str, tmp_path: Path) -> None:
    wanted = epochs(plain(name), 2)
    epochs(kept(name, tmp_path))
    for number in range(len(_files(tmp_path))):
        file = _files(tmp_path)[number]
        DAMAGES[damage](file)
        assert_same(epochs(kept(name, tmp_path), 2), wanted)
        assert caching_folder.verified(only(tmp_path)).sound, file
        assert read_reached(only(tmp_path)).complete, file
        CALLS.clear()
        assert_same(epochs(kept(name, tmp_path), 2), wanted)
        assert not CALLS


def test_behind_a_gap_that_was_filled_nothing_more_is_computed(tmp_path: Path) -> None:
    pipe = generated().cache(tmp_path).batch(4)
    (wanted,) = epochs(pipe)
    _flip(only(tmp_path) / "x.npy", 0.5)  # row 9 or 10 of 23
    CALLS.clear()
    assert_same(epochs(pipe), [wanted])
    assert len(CALLS) < 16
    CALLS.clear()
    assert_same(epochs(pipe), [wanted])
    assert not CALLS


def test_a_partial_cache_that_is_damaged_is_never_served(tmp_path: Path) -> None:
    for damage in DAMAGES.values():
        for number in range(5):
            path = tmp_path / f"{damage.__name__}{number}{len(list(tmp_path.iterdir()))}"
            _stopped(generated().cache(path).batch(4), 3)
            damage(_files(path)[number])
            assert_same(epochs(generated().cache(path).batch(4), 2), epochs(generated().batch(4), 2))
            assert caching_folder.verified(only(path)).sound


def test_rows_whose_shapes_come_to_vary_are_taken_along(tmp_path: Path) -> None:
    def grown(row: Any) -> Any:
        return {"n": row["n"], "x": np.arange(4 + (row["n"] > 9) * row["n"] % 3)}

    pipe = generated().map(grown).cache(tmp_path).padded_batch(3)
    assert_same(epochs(pipe, 2), epochs(generated().map(grown).padded_batch(3), 2))
    assert read_reached(only(tmp_path)).complete
    CALLS.clear()
    epochs(pipe)
    assert not CALLS


def test_a_cache_that_is_deleted_while_it_is_used_is_made_anew(tmp_path: Path) -> None:
    pipe = generated().cache(tmp_path).batch(4)
    (wanted,) = epochs(pipe)
    with bk.Loader(pipe, executor="inline") as loader:
        rest = iter(loader)
        first = next(rest)
        assert caching_folder.clear(tmp_path)
        assert_same([first, *rest], wanted)
        assert_same(list(loader), wanted)


# -- on disk


def test_the_files_are_plain_npy_columns_that_end_with_the_rows(tmp_path: Path) -> None:
    epochs(generated().filter(odd).cache(tmp_path).batch(4))
    folder = only(tmp_path)
    assert np.load(folder / "n.npy").tolist() == list(range(1, ROWS, 2))
    assert np.load(folder / "x.npy", mmap_mode="r").shape == (11, 3)
    assert np.load(folder / "row.npy").tolist() == list(range(1, ROWS, 2))
    assert {entry.name for entry in folder.iterdir()} == {
        *("n.npy", "x.npy", "row.npy", "epoch.npy", "sub.npy", "index.npy", "manifest.json", NOTE)
    }


def test_a_cache_is_listed_with_what_it_has(tmp_path: Path) -> None:
    pipe = data().filter(odd).cache(tmp_path).batch(4)
    _stopped(pipe, 1)
    one = caching_folder.described(only(tmp_path))
    assert (one.rows, one.problem) == (None, None)
    assert 0 < one.stored < 11
    epochs(pipe)
    one = caching_folder.described(only(tmp_path))
    assert (one.rows, one.stored, one.problem) == (11, 11, None)
    assert one.upstream[0] == "source arrays"
    assert one.upstream[1].startswith("filter(")


def test_the_commands_look_after_it(tmp_path: Path) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(main, ["cache", *arguments, str(tmp_path)])

    _stopped(generated().cache(tmp_path).batch(4), 3)
    assert "12 rows so far" in run("list").output
    epochs(generated().cache(tmp_path).batch(4))
    assert "23 of 23 rows" in run("list").output
    assert (run("verify").exit_code, "sound: 23 rows" in run("verify").output) == (0, True)
    _flip(only(tmp_path) / "n.npy", 1)
    report = run("verify")
    assert (report.exit_code, "damaged: 1 of 23 rows: 22" in report.output) == (1, True)
    assert run("clear").exit_code == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda: generated(22),
        lambda: bk.from_generator(generated_batches, batched=True).unbatch(),
        lambda: generated().filter(lambda row: row["n"] % 2 == 0),
        lambda: generated().take(22),
        lambda: generated().window(2).map(lambda row: {"n": row["n"][0], "x": row["x"][0]}),
    ],
)
def test_what_differs_before_is_kept_apart(change: Callable[[], bk.Pipeline], tmp_path: Path) -> None:
    epochs(generated().cache(tmp_path).batch(4))
    assert_same(epochs(change().cache(tmp_path).batch(4)), epochs(change().batch(4)))
    assert len(caching_folder.found(tmp_path)) == 2


def test_a_full_disk_is_no_reason_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, written = caching_files._write, [0]

    def write(descriptor: int, offset: int, content: Any) -> None:
        written[0] += len(content)
        if written[0] > 3000:
            raise OSError(28, "No space left on device")
        real(descriptor, offset, content)

    monkeypatch.setattr(caching_files, "_write", write)
    pipe = generated(200).cache(tmp_path).batch(4)
    with pytest.warns(bk.CacheWarning, match="No space left.*computed every time") as said:
        got = epochs(pipe, 2)
    assert len(said) == 1
    assert_same(got, epochs(generated(200).batch(4), 2))
    assert read_reached(only(tmp_path)).number > 0


# -- in memory


def test_rows_behind_the_budget_are_computed_each_time_and_a_warning_says_so() -> None:
    row = 8 + 8 + 8 + 8 + 12  # row, epoch, which of those it became; n, x
    pipe = generated().cache(memory=10 * row).batch(5)
    with pytest.warns(bk.CacheWarning, match=r"cache\(memory=440\) is full: it holds the first 10 rows") as said:
        got = epochs(pipe, 3)
    assert len(said) == 1
    assert_same(got, epochs(generated().batch(5), 3))


def test_what_finds_no_room_is_computed_from_where_the_room_ended() -> None:
    calls: list[int] = []

    def counted(row: Any) -> bool:
        calls.append(int(row["n"]))
        return bool(row["n"] % 2)

    numbers = bk.from_arrays({"n": np.arange(3200)})
    with bk.Loader(numbers.filter(counted).cache(memory=800 * 32).batch(8), executor="inline") as loader:
        with pytest.warns(bk.CacheWarning, match="holds the first 800 rows"):
            first = list(loader)
        calls.clear()
        assert_same(list(loader), first)
        assert 1600 <= len(calls) < 1700
        assert min(calls) >= 1500


def test_batches_behind_the_budget_are_computed_each_time() -> None:
    with pytest.warns(bk.CacheWarning, match="holds the first [1-4] batches"):
        got = epochs(generated().batch(5).cache(memory=2000).random_map(noise), 3)
    assert_same(got, epochs(generated().batch(5).random_map(noise), 3))


# -- what goes wrong


def test_a_row_that_fails_is_tried_again_and_those_behind_keep_their_numbers(where: Any) -> None:
    failing = [True]

    def fails(row: Any) -> Any:
        if failing[0] and row["n"] == 9:
            raise ValueError("broken")
        return row

    pipe = generated().map(fails).cache(where).batch(4)
    with bk.Loader(pipe, executor="inline") as loader:
        rest = iter(loader)
        got: list[Any] = []
        for _ in range(2):
            with pytest.raises(bk.StageError, match="row 9: ValueError: broken"):
                got.extend(rest)
        failing[0] = False
        got += rest
        wanted = epochs(generated().batch(4), 2)
        assert_same(got, wanted[0])
        assert_same(list(loader), wanted[1])


def test_rows_that_differ_are_refused_by_name(where: Any) -> None:
    def mixed(row: Any) -> Any:
        return {"n": row["n"], "x": row["x"][0] if row["n"] == 9 else row["x"]}

    with pytest.raises(bk.SchemaError, match=r"stage 1 cache\(.*'x' is float32"):
        epochs(generated().map(mixed).cache(where).batch(4))


@pytest.mark.parametrize(
    "pipe",
    [
        lambda: data().filter(odd).repeat().cache().batch(4),
        lambda: generated().repeat().cache().batch(4),
        lambda: generated().repeat().batch(4).cache(),
        lambda: bk.mix([generated(), data()], stop="forever", weights=[1, 1]).cache().batch(4),
        lambda: bk.concat([generated().repeat(), data()]).cache().batch(4),
        lambda: ragged().repeat().pack(9).cache().batch(4),
    ],
)
def test_endless_rows_are_refused(pipe: Callable[[], bk.Pipeline]) -> None:
    with pytest.raises(bk.PipelineError, match=r"cache\(\) cannot keep endless rows: put repeat\(\) behind cache"):
        bk.Loader(pipe())


@pytest.mark.parametrize("before", [lambda: generated().map(doubled), lambda: data().filter(odd)])
def test_rows_that_may_be_left_out_are_not_counted(before: Callable[[], bk.Pipeline]) -> None:
    with pytest.raises(bk.PipelineError, match=r"on_error='skip' cannot be used with stage 1 cache\(\)"):
        bk.Loader(before().cache().batch(4), on_error="skip")


def test_rows_are_left_out_behind_a_cache(where: Any) -> None:
    def fails(row: Any) -> Any:
        if row["n"] in (3, 9):
            raise ValueError("broken")
        return row

    options: dict[str, Any] = {"executor": "inline", "on_error": bk.Skip(budget=5)}
    with bk.Loader(generated().cache(where).map(fails).batch(4), **options) as loader:
        got = [[batch["n"].tolist() for batch in loader] for _ in range(2)]
        assert loader.skipped == 4
    assert got == [[[0, 1, 2], [4, 5, 6, 7], [8, 10, 11], [12, 13, 14, 15], [16, 17, 18, 19], [20, 21, 22]]] * 2


def test_a_shuffle_of_everything_behind_is_refused() -> None:
    with pytest.raises(bk.PipelineError, match=r"shuffle\(.*window"):
        bk.Loader(data().filter(odd).cache().shuffle(1).batch(4))


# -- what is told of a pipeline


def test_no_rows_are_no_batches(where: Any) -> None:
    for pipe in (generated(0).cache(where).batch(4), generated(0).batch(4).cache(where)):
        assert epochs(pipe, 2) == [[], []]


@pytest.mark.parametrize("name", ["generator", "filter", "pack", "bucket_batch", "filled up", "flat_map"])
def test_verify_finds_nothing_and_keeps_nothing(name: str, where: Any) -> None:
    verdict = bk.verify(kept(name, where), steps=4, without=("process", "threads"))
    assert verdict.ok, str(verdict)
    assert where is None or not where.exists()


def test_lineage_names_the_rows_of_each_batch(where: Any) -> None:
    pipe = data().filter(odd).cache(where).batch(4)
    with bk.Loader(pipe, executor="inline", lineage=True) as loader:
        for _ in range(2):
            rows = np.concatenate([batch["lineage"]["row"] for batch in loader])
            assert rows.tolist() == list(range(1, ROWS, 2))


def test_lineage_behind_a_cache_is_that_of_the_first_epoch_in_front_of_it() -> None:
    def told(pipe: bk.Pipeline) -> list[Any]:
        with bk.Loader(pipe, lineage=True) as loader:
            return [
                [np.asarray(part).tolist() for part in batch["lineage"].values()] for _ in range(2) for batch in loader
            ]

    packed = ragged().pack(9)
    plain = told(packed.batch(4))
    for kept in (packed.cache().batch(4), packed.batch(4).cache()):
        found = told(kept)
        assert found == plain[: len(plain) // 2] * 2
        assert bk.explain(kept, 1, epoch=1).row.tolist() == found[1][2]


def test_static_shapes_stay_static(where: Any) -> None:
    for name in ("bucket_batch", "filled up"):
        before = FLOWS[name].before()
        with bk.Loader(before, shard=(1, 2)) as one, bk.Loader(before.cache(where), shard=(1, 2)) as two:
            assert repr(two.shapes) == repr(one.shapes)
            assert repr(two.schema) == repr(one.schema)


def test_nothing_is_looked_at_or_written_before_the_first_batch(tmp_path: Path) -> None:
    with bk.Loader(generated().cache(tmp_path / "kept").batch(4), executor="inline") as loader:
        loader.state_dict()
    assert not (tmp_path / "kept").exists()
    assert not CALLS
