"""What each verb means, in plain Python on lists of rows: the oracle of the property tests.

A row is a tree (dicts and tuples) of NumPy scalars and arrays; a :class:`Batch` is a list of rows of one shape.
A pipeline is a list of ``(verb, arguments)``. Nothing of batchkit is used here. The order of a shuffle is not for
an oracle to know: it is given as ``orders(ordinal, length, epoch)``. What a rank gets is its share of the last cut.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from trees import flat, grown, joined, leaves, replaced, stacked

Orders = Callable[[int, int, int], list[int]]
Shard = tuple[int, int]


class Batch(list[Any]):
    """The rows of one batch: of equal shapes, once they are padded."""


def rank_slice(rows: list[Any], rank: int, world: int) -> list[Any]:
    """Return a rank's contiguous share: shares differ by at most one row.

    >>> [rank_slice(list("abcde"), rank, 3) for rank in range(3)]
    [['a'], ['b', 'c'], ['d', 'e']]
    """
    return rows[len(rows) * rank // world : len(rows) * (rank + 1) // world]


# -- one epoch


def epoch_of(
    rows: Iterable[Any], verbs: Sequence[tuple[str, Any]], epoch: int, orders: Orders, shard: Shard = (0, 1)
) -> list[Any]:
    """Return the items of one epoch, as a rank sees them: rows, or behind a cut batches."""
    if not verbs:
        found = list(rows)
        return [Batch(rank_slice(item, *shard)) if isinstance(item, Batch) else item for item in found]
    *before, (verb, given) = verbs
    rest = (0, 1) if verb in CUTS else shard

    def items(which: int) -> list[Any]:
        return epoch_of(rows, before, which, orders, rest)

    if verb == "shuffle":
        found = items(epoch)
        return [found[place] for place in orders(sum(name == verb for name, _ in before), len(found), epoch)]
    arguments, options = _arguments(given)
    if verb == "repeat":
        (count,) = (*arguments, *options.values())
        return list(itertools.chain.from_iterable(items(epoch * count + turn) for turn in range(count)))
    if verb in CUTS:
        options["shard"] = shard
    return list(VERBS[verb](items(epoch), *arguments, **options))


def _arguments(given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(given, dict):
        return (), dict(given)
    return given if isinstance(given, tuple) else () if given is None else (given,), {}


# -- rows to rows


def take(items: list[Any], count: int) -> list[Any]:
    return items[:count]


def skip(items: list[Any], count: int) -> list[Any]:
    return items[count:]


def same(items: list[Any], **options: Any) -> list[Any]:
    """Nothing changes: a cache, or a random map whose draws the caller leaves out."""
    return items


def map_(items: list[Any], fn: Callable[..., Any]) -> list[Any]:
    """A function on whole columns is one here that does the same to each of their rows."""
    return [Batch(map(fn, item)) if isinstance(item, Batch) else fn(item) for item in items]


def filter_(items: list[Any], fn: Callable[..., Any]) -> list[Any]:
    if items and isinstance(items[0], Batch):
        return [Batch(row for row in item if fn(row)) for item in items]
    return [item for item in items if fn(item)]


def flat_map(items: list[Any], fn: Callable[..., Any]) -> list[Any]:
    return [made for item in items for made in fn(item)]


def select(items: list[Any], *names: str) -> list[Any]:
    def kept(row: Any) -> Any:
        return {name: row[name] for name in names}

    return map_(items, kept)


def window(
    items: list[Any], length: int, stride: int | None = None, inside: bool = False, remainder: str = "drop"
) -> list[Any]:
    """Rows ``[start : start + length]`` for every start 0, stride, 2 * stride, ... there is.

    >>> [w.tolist() for w in window([np.int64(n) for n in range(5)], 2, 2, remainder="keep")]
    [[0, 1], [2, 3], [4]]
    >>> window([{"x": np.arange(3), "y": 7}], 2, 1, inside=True, remainder="pad")[2]
    {'x': array([2, 0]), 'y': 7, 'mask': array([ True, False])}
    """
    found = []
    for rows in [[item] for item in items] if inside else [items]:
        count = max(np.shape(leaf)[0] for leaf in flat(rows[0]).values() if np.ndim(leaf)) if inside else len(rows)
        for start in range(0, count, stride or length):
            here = min(length, count - start)
            if here == length or remainder != "drop":
                whole = _inside(rows[0], start, here) if inside else stacked(rows[start : start + here])
                grow = length - here if remainder == "pad" else 0
                whole = leaves(lambda leaf, grow=grow: grown(leaf, grow), whole)
                found.append(joined(whole, "mask", np.arange(length) < here) if remainder == "pad" else whole)
    return found


def _inside(row: Any, start: int, count: int) -> Any:
    return leaves(lambda leaf: leaf[start : start + count] if np.ndim(leaf) else leaf, row)


# -- cuts


def batch(items: list[Any], size: int, remainder: str = "keep", shard: Shard = (0, 1)) -> list[Any]:
    return _cut(items, size, remainder, shard, lambda rows: rows)


def padded_batch(
    items: list[Any],
    size: int,
    remainder: str = "keep",
    shard: Shard = (0, 1),
    length: int | None = None,
    multiple_of: int = 1,
    pad_value: Any = 0,
    lengths: bool = False,
) -> list[Any]:
    """Every leaf with an axis is filled up to ``length``, or the longest of a rank's rows.

    >>> padded_batch([{"x": np.arange(n)} for n in (1, 2)], 2, multiple_of=3)[0]
    [{'x': array([0, 0, 0])}, {'x': array([0, 1, 0])}]
    """
    return _cut(items, size, remainder, shard, lambda rows: _even(rows, length, multiple_of, pad_value, lengths))


def bucket_batch(
    items: list[Any],
    size: int | None = None,
    boundaries: Sequence[int | None] = (),
    max_tokens: int | None = None,
    length: str = "",
    pad_to: str = "bucket",
    multiple_of: int = 1,
    pad_value: Any = 0,
    remainder: str = "keep",
    lengths: bool = False,
    shard: Shard = (0, 1),
) -> list[Any]:
    """A batch comes out when the row arrives that fills its bucket; the rest at the end, bucket by bucket.

    >>> rows = [{"s": np.full(n, n)} for n in (1, 4, 2, 3, 1)]
    >>> [[row["s"].tolist() for row in each] for each in bucket_batch(rows, 2, (2, None), length="s")]
    [[[1, 0], [2, 2]], [[4, 4, 4, 4], [3, 3, 3, 0]], [[1, 0]]]
    """
    buckets: list[list[Any]] = [[] for _ in boundaries]
    found = []

    def long(row: Any) -> int:
        return len(flat(row)[length])

    def emit(place: int) -> None:
        bound, most = boundaries[place], _most(boundaries[place], size, max_tokens)
        to = bound if pad_to == "bucket" else None
        made = _cut(
            buckets[place],
            most or len(buckets[place]),
            remainder,
            shard,
            lambda rows: _even(rows, to, multiple_of, pad_value, lengths),
        )
        found.extend(made)
        buckets[place] = []

    for row in items:
        place = next(n for n, bound in enumerate(boundaries) if bound is None or long(row) <= bound)
        held = buckets[place]
        if max_tokens and boundaries[place] is None and (len(held) + 1) * max(map(long, [*held, row])) > max_tokens:
            emit(place)
        buckets[place].append(row)
        if len(buckets[place]) == _most(boundaries[place], size, max_tokens):
            emit(place)
    for place, held in enumerate(buckets):
        if held and not (remainder == "drop" and _most(boundaries[place], size, max_tokens) is None):
            emit(place)
    return found


def _most(bound: int | None, size: int | None, max_tokens: int | None) -> int | None:
    """Return how many rows fill a bucket, if that is known beforehand."""
    if size is not None:
        return size
    return None if bound is None or max_tokens is None else max_tokens // bound


def _cut(
    items: list[Any], size: int, remainder: str, shard: Shard, even: Callable[[list[Any]], list[Any]]
) -> list[Any]:
    """Cut rows into runs of ``size``; ``even`` gives a rank's rows one shape."""
    found = []
    for run in (items[start : start + size] for start in range(0, len(items), size)):
        if len(run) < size and remainder == "drop":
            continue
        mine = [row for row in rank_slice([*run, *[None] * (size - len(run))], *shard) if row is not None]
        share = len(rank_slice([None] * size, *shard))
        if remainder != "pad":
            mine = rank_slice(run, *shard)
            found.append(Batch(even(mine)) if mine else Batch())
            continue
        filled = even(mine or run[:1])
        rows = [joined(row, "mask", np.bool_(True)) for row in filled[: len(mine)]]
        nothing = joined(leaves(np.zeros_like, filled[0]), "mask", np.bool_(False))
        found.append(Batch([*rows, *[nothing] * (share - len(mine))]))
    return found


def _even(rows: list[Any], length: int | None, multiple_of: int, pad_value: Any, lengths: bool) -> list[Any]:
    flats = [flat(row) for row in rows]
    padded = [path for path, leaf in flats[0].items() if np.ndim(leaf)]
    longest = {path: max(len(each[path]) for each in flats) for path in padded}
    widths = {path: length or -(-most // multiple_of) * multiple_of for path, most in longest.items()}
    return [_filled(row, widths, pad_value, lengths) for row in rows]


def _filled(row: Any, widths: Mapping[str, int], value: Any, lengths: bool) -> Any:
    found = row
    for path, width in widths.items():
        leaf = flat(row)[path]
        found = replaced(found, path.split("/"), grown(leaf, width - len(leaf), value))
        if lengths:
            found = joined(found, f"{path}_length", np.int64(len(leaf)))
    return found


def unbatch(items: list[Any]) -> list[Any]:
    return list(itertools.chain.from_iterable(items))


def rebatch(items: list[Any], size: int, remainder: str = "keep", shard: Shard = (0, 1)) -> list[Any]:
    return batch(unbatch(items), size, remainder, shard)


# -- packing


def pack(
    items: list[Any],
    length: int | Mapping[str, int],
    method: str = "first_fit",
    bins: int = 64,
    oversize: str = "error",
    pad_value: Any = 0,
) -> list[Any]:
    """Put sequences into rows of fixed length; ``bins`` rows are open at once.

    >>> rows = [{"s": np.full(n, n)} for n in (3, 2, 1)]
    >>> [row["s"].tolist() for row in pack(rows, 4)]
    [[3, 3, 3, 1], [2, 2, 0, 0]]
    >>> [row["s_positions"].tolist() for row in pack(rows, {"s": 4}, bins=1)]
    [[0, 1, 2, 0], [0, 1, 0, 0]]
    """
    one = isinstance(length, int)
    names = list(flat(items[0])) if items else []
    room: dict[str, int] = dict(length) if isinstance(length, Mapping) else dict.fromkeys(names, length)
    opened: list[list[dict[str, Any]]] = []
    found = []

    def used(row: list[dict[str, Any]]) -> int:
        """Return how full a packed row is; leaves of equal length count once."""
        counted = names[:1] if one else names
        return sum(len(each[name]) for each in row for name in counted)

    for sequence in itertools.chain.from_iterable(_pieces(flat(item), room, oversize) for item in items):
        fits = [row for row in opened if all(_used(row, name) + len(sequence[name]) <= room[name] for name in names)]
        if not fits and len(opened) == bins:
            full = max(opened, key=used)  # the first of equals is the oldest
            opened = [row for row in opened if row is not full]
            found.append(full)
        if not fits:
            opened.append([])
            fits = opened[-1:]
        (fits[0] if method == "first_fit" else max(fits, key=used)).append(sequence)
    like = items[0] if items else None
    return [_packed(row, like, room, one, pad_value) for row in [*found, *opened]]


def _used(row: list[dict[str, Any]], name: str) -> int:
    return sum(len(sequence[name]) for sequence in row)


def _pieces(row: dict[str, Any], room: Mapping[str, int], oversize: str) -> Iterator[dict[str, Any]]:
    longest = max(map(len, row.values()))
    if all(len(leaf) <= room[name] for name, leaf in row.items()) or oversize == "truncate":
        if longest:
            yield {name: leaf[: room[name]] for name, leaf in row.items()}
        return
    assert oversize == "split", "an oversize row is an error"
    most = next(iter(room.values()))
    for start in range(0, longest, most):
        yield {name: leaf[start : start + most] for name, leaf in row.items()}


def _packed(row: list[dict[str, Any]], like: Any, room: Mapping[str, int], one: bool, value: Any) -> Any:
    found = like
    for name in room:
        parts = [sequence[name] for sequence in row]
        joint = np.concatenate(parts)
        found = replaced(found, name.split("/"), grown(joint, room[name] - len(joint), value))
    for name in list(room)[:1] if one else room:
        lead, sizes = "" if one else f"{name}_", [len(sequence[name]) for sequence in row]
        ids = np.concatenate([np.full(size, number, np.int32) for number, size in enumerate(sizes, 1)])
        places = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
        grow = room[name] - len(ids)
        found = {**found, f"{lead}segment_ids": grown(ids, grow), f"{lead}positions": grown(places, grow)}
    return found


# -- several pipelines


def concat(parts: Sequence[list[Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(parts))


def zip_(parts: Any, stop: str = "error") -> list[Any]:
    """``parts`` is a tree of lists of rows.

    >>> zip_({"a": [1, 2], "b": [3, 4, 5]}, stop="shortest")
    [{'a': 1, 'b': 3}, {'a': 2, 'b': 4}]
    """
    counts = {len(part) for part in flat(parts).values()}
    assert stop == "shortest" or len(counts) == 1, "unequal lengths are an error"
    return [leaves(lambda part, place=place: part[place], parts) for place in range(min(counts))]


def interleave(parts: Sequence[list[Any]], block: int = 1) -> list[Any]:
    """
    >>> "".join(interleave([list("aaa"), list("b"), list("cc")], 2))
    'aabcca'
    """
    turns = [[part[start : start + block] for start in range(0, len(part), block)] for part in parts]
    rounds = itertools.zip_longest(*turns, fillvalue=[])
    return [row for blocks in rounds for run in blocks for row in run]


def mix(
    parts: Sequence[list[Any]],
    weights: Sequence[float] | None = None,
    stop: str = "first",
    schedule: Sequence[tuple[int, Sequence[float]]] | None = None,
    most: int = 1000,
) -> list[Any]:
    """Row k of a part of weight w is due at (k + 1/2) / w; of "forever" the first ``most``.

    >>> "".join(mix([list("aaaaaa"), list("bbb")], [2, 1]))
    'abaabaaba'
    >>> "".join(mix([list("aa"), list("BCD")], [1, 1], stop="all"))
    'aBaCaD'
    """
    pieces = dict(schedule or [(0, weights or [])])
    given, passed, through = [0] * len(parts), [0] * len(parts), [False] * len(parts)
    now: Sequence[float] = ()
    found: list[Any] = []
    while stop != "forever" or len(found) < most:
        if len(found) in pieces:
            now, given = pieces[len(found)], [0] * len(parts)
        dues = [(Fraction(2 * given[n] + 1, 2) / Fraction(now[n]), n) for n in range(len(parts)) if now[n]]
        part = min(dues)[1]
        if passed[part] == len(parts[part]) and stop == "first":
            break
        found.append(parts[part][passed[part] % len(parts[part])])
        given[part], passed[part] = given[part] + 1, passed[part] + 1
        through[part] |= passed[part] == len(parts[part])
        if stop == "all" and all(through):
            break
    return found


CUTS = ("batch", "padded_batch", "bucket_batch", "rebatch")
"""The verbs that say how many rows a batch has over all ranks."""
VERBS: dict[str, Callable[..., list[Any]]] = {
    **{"take": take, "skip": skip, "map": map_, "filter": filter_, "flat_map": flat_map, "select": select},
    **{"window": window, "batch": batch, "padded_batch": padded_batch, "bucket_batch": bucket_batch},
    **{"unbatch": unbatch, "rebatch": rebatch, "pack": pack, "cache": same, "random_map": same},
}
COMBINED: dict[str, Callable[..., list[Any]]] = {"concat": concat, "zip": zip_, "interleave": interleave, "mix": mix}
