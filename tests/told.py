"""Pipelines behind every kind of stage whose rows hold leaves that tell where they are from, and reading those."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import batchkit as bk

Pairs = list[tuple[int, int]]


def told(part: int, count: int, lengths: Any = None) -> bk.Pipeline:
    """Rows that say where they are from."""
    if lengths is None:
        return bk.from_arrays({"source": np.full(count, part), "row": np.arange(count)})
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.repeat(np.arange(count), lengths)
    return bk.from_ragged({"source": np.full(len(rows), part), "row": rows}, offsets)


def generated(count: int, part: int = 0) -> bk.Pipeline:
    return bk.from_generator(lambda: ({"source": part, "row": row} for row in range(count)))


def batches(count: int) -> bk.Pipeline:
    """A generator of batches of 1, 2, 3, 1, ... rows."""

    def made() -> Iterator[Any]:
        rows = iter(range(count))
        for size in itertools.cycle([1, 2, 3]):
            row = list(itertools.islice(rows, size))
            if not row:
                return
            yield {"source": np.zeros(len(row), np.int64), "row": np.array(row)}

    return bk.from_generator(made, batched=True)


def some(part: int, count: int) -> bk.Pipeline:
    """Two rows of three."""
    return told(part, count).filter(lambda row: bool(row["row"] % 3))


def times(row: Any) -> list[Any]:
    return [row] * int(row["row"] % 3)


def thirds(batch: Any) -> Any:
    return batch["row"] % 3 > 0


def windows_of_thirds(batch: Any) -> Any:
    return batch["row"][:, 0] % 3 > 0


NINE = np.arange(60) % 9

ROWS: dict[str, Callable[[], bk.Pipeline]] = {
    "indexed": lambda: told(0, 20).shuffle(1).repeat(2).batch(6),
    "filtered": lambda: told(0, 40).shuffle(1).filter(lambda row: bool(row["row"] % 3)).batch(6),
    "repeated behind a filter": lambda: some(0, 40).take(9).repeat(3).skip(2).batch(6),
    "batch filter": lambda: told(0, 40).batch(8).filter(thirds).map(dict),
    "batch filter, shuffled": lambda: told(0, 40).batch(8).filter(thirds).shuffle(3).repeat(2),
    "batch filter, kept": lambda: told(0, 40).batch(8).filter(thirds).cache().map(dict),
    "rebatched": lambda: told(0, 40).batch(8).filter(thirds).rebatch(5),
    "batch filter behind a filter": lambda: some(0, 40).batch(7).filter(thirds).map(dict),
    "flat_map": lambda: told(0, 20).flat_map(times).shuffle(1, window=7).batch(4),
    "generator": lambda: generated(30).filter(lambda row: bool(row["row"] % 2)).batch(4),
    "generator of batches": lambda: batches(30),
    "generator of batches, cut again": lambda: batches(30).rebatch(4),
    "filtered mix": lambda: bk.mix([told(0, 20), told(1, 30)], [1, 2]).filter(lambda row: row["row"] > 3).batch(5),
    "mix of filtered": lambda: bk.mix([told(0, 20).filter(lambda row: True), told(1, 30)], [1, 2], stop="all").batch(5),
    "concat with a generator": lambda: bk.concat([generated(9), told(1, 12).shuffle(2)]).batch(5),
    "interleave of filtered": lambda: bk.interleave([some(0, 20), told(1, 9), some(2, 9)], block=2).batch(5),
    "filtered, kept": lambda: some(0, 40).cache().shuffle(1, window=7).batch(5),
    "batches of filtered, kept": lambda: some(0, 40).batch(5).cache(),
    "kept in a mix": lambda: bk.mix([generated(20).cache(), told(1, 30)], [1, 2], stop="all").batch(5),
    "concat of combinations": lambda: bk.concat([bk.interleave([told(0, 5), told(1, 7)]), some(2, 9)]).batch(4),
}
"""Of rows each of which is one source row."""

WINDOWS: dict[str, Callable[[], bk.Pipeline]] = {
    "indexed": lambda: told(0, 20).window(3, 2).batch(4),
    "of windows": lambda: told(0, 20).window(3, 2).window(2, 1).batch(4),
    "behind a filter": lambda: some(0, 40).window(3, 2).batch(4),
    "behind flat_map": lambda: told(0, 20).flat_map(times).window(4).batch(3),
    "over a generator": lambda: generated(30).window(4, 3).batch(3),
    "of windows over a generator": lambda: generated(30).window(2).window(3, 1).batch(3),
    "shuffled": lambda: generated(40).window(2).shuffle(1, window=5).batch(3),
    "filtered": lambda: told(0, 40).window(3, 1).filter(lambda row: bool(row["row"][0] % 3)).batch(4),
    "filtered in batches": lambda: told(0, 40).window(3, 2).batch(4).filter(windows_of_thirds),
    "taken apart": lambda: told(0, 40).window(3, 2).batch(4).filter(windows_of_thirds).rebatch(3),
    "behind a mix": lambda: bk.mix([some(0, 20), generated(30, 1)], [1, 2]).window(3).batch(2),
    "in a concat": lambda: bk.concat([some(0, 20).window(3), told(1, 12).window(3, 1)]).batch(4),
}
"""Of rows each of which is several rows of a source."""

ZIPS: dict[str, Callable[[], bk.Pipeline]] = {
    "indexed": lambda: bk.zip({"a": told(0, 20).shuffle(1), "b": told(1, 20)}).batch(6),
    "of filtered": lambda: bk.zip({"a": some(0, 30), "b": told(1, 20).shuffle(2)}).batch(6),
    "of generators": lambda: bk.zip({"a": generated(9), "b": generated(9, 1)}).batch(2),
    "shortest": lambda: bk.zip({"a": some(0, 30), "b": generated(17, 1)}, stop="shortest").batch(5),
    "of windows": lambda: bk.zip({"a": generated(20).window(4), "b": told(1, 12).window(4, 2)}).batch(2),
    "in windows": lambda: bk.zip({"a": some(0, 30), "b": told(1, 20)}).window(3, 2).batch(4),
    "filtered": lambda: bk.zip({"a": told(0, 30), "b": told(1, 30)}).filter(lambda row: row["b"]["row"] > 3).batch(4),
    "of a mix": lambda: bk.zip(
        {"a": bk.mix([some(0, 9), told(1, 9)], [2, 3]), "b": told(2, 12)}, stop="shortest"
    ).batch(5),
    "repeated": lambda: bk.zip({"a": some(0, 12), "b": generated(8, 1)}).repeat(2).batch(5),
}
"""Of rows with sides."""

SEQUENCES: dict[str, Callable[[], bk.Pipeline]] = {
    "packed": lambda: told(0, 60, NINE).shuffle(1).pack(16).batch(3),
    "packed behind a filter": lambda: told(0, 60, NINE).filter(lambda row: len(row["row"]) != 3).pack(16).batch(3),
    "packed and kept": lambda: told(0, 60, NINE).shuffle(1, reshuffle=False).pack(16).cache().batch(3),
    "packed of a mix": lambda: (
        bk.mix([told(0, 40, NINE[:40]), told(1, 60, NINE)], [2, 1], stop="all").pack(16).batch(3)
    ),
    "packed and filtered in batches": lambda: (
        told(0, 60, NINE).pack(16).batch(3).filter(lambda batch: batch["row"][:, 0] % 2 > 0)
    ),
    "packed, taken apart": lambda: told(0, 60, NINE).pack(16).batch(3).unbatch().batch(2),
    "packed in windows": lambda: told(0, 60, NINE).filter(lambda row: True).pack(16).window(2).batch(2),
    "buckets": lambda: told(0, 60, NINE + 1).shuffle(1).bucket_batch(4, boundaries=[3, 9], pad_value=-1),
    "buckets behind a filter": lambda: (
        told(0, 60, NINE + 1).filter(lambda row: len(row["row"]) != 3).bucket_batch(4, boundaries=[3, 9], pad_value=-1)
    ),
    "buckets, taken apart": lambda: (
        told(0, 60, NINE + 1).bucket_batch(4, boundaries=[9], pad_to="bucket", pad_value=-1).rebatch(3)
    ),
    "windows inside rows": lambda: told(0, 20, NINE[:20]).filter(lambda row: True).window(3, 2, inside=True).batch(4),
}
"""Of rows in which runs of one source row stand one behind the other."""

TOLD = {
    **{f"rows: {name}": made for name, made in ROWS.items()},
    **{f"windows: {name}": made for name, made in WINDOWS.items()},
    **{f"zip: {name}": made for name, made in ZIPS.items()},
    **{f"sequences: {name}": made for name, made in SEQUENCES.items()},
}
FEW = ("rows: batch filter behind a filter", "windows: taken apart", "windows: of windows over a generator")
FEW += ("zip: of filtered", "zip: of a mix", "sequences: packed behind a filter", "sequences: buckets behind a filter")


def in_data(name: str, batch: Any, place: int) -> Pairs:
    """Return the source rows that the data of one row of a batch tell of."""
    sides = [batch["a"], batch["b"]] if name.startswith("zip") else [batch]
    pairs = [_pairs(side["source"][place], side["row"][place]) for side in sides]
    if name == "zip: in windows":  # each of its rows has both sides before the next one
        return [pair for row in zip(*pairs, strict=True) for pair in row]
    found = list(itertools.chain.from_iterable(pairs))
    if not name.startswith("sequences"):
        return found
    real = np.ravel(batch["segment_ids"][place]) > 0 if "segment_ids" in batch else np.array(found)[:, 1] >= 0
    return [pair for pair, _ in itertools.groupby(itertools.compress(found, real))]


def _pairs(sources: Any, rows: Any) -> Pairs:
    return list(zip(np.ravel(sources).tolist(), np.ravel(rows).tolist(), strict=True))


def as_lists(lineage: Any) -> list[list[int]]:
    """Return places, sources, rows and epochs, of a Lineage or of the leaves of a batch."""
    names = ("place", "source", "row", "epoch")
    return [(lineage[name] if isinstance(lineage, dict) else getattr(lineage, name)).tolist() for name in names]


def said(lineage: Any, rows: int) -> list[Pairs]:
    """Return for each row the sources and rows that a lineage names."""
    found: list[Pairs] = [[] for _ in range(rows)]
    for place, source, row, _ in zip(*as_lists(lineage), strict=True):
        found[place].append((source, row))
    return found


def count(batch: Any) -> int:
    return len(batch["a"]["row"] if "a" in batch else batch["row"])


def all_batches(pipe: bk.Pipeline, shard: tuple[int, int] = (0, 1), epoch: int = 0, **options: Any) -> list[Any]:
    with bk.Loader(pipe, lineage=True, shard=shard, **options) as loader:
        return list(loader.iterate(epoch))


def fails(row: Any) -> Any:
    if row["row"] in (2, 5, 11):
        raise ValueError("bad")
    return row


def states(pipe: bk.Pipeline, epoch: int = 0) -> list[Any]:
    """Return the state in front of each step of an epoch, as it comes out of JSON."""
    with bk.Loader(pipe, executor="inline") as loader:
        loader.load_state_dict({**loader.state_dict(), "epoch": epoch})
        made = [loader.state_dict()]
        for _ in loader:
            made.append(loader.state_dict())
    return [json.loads(json.dumps(state)) for state in made[:-1]]
