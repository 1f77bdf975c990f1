"""What other loaders call things, and where batchkit has them: for the messages about names that are not there."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import ParamSpec, TypeVar

from batchkit.errors import PipelineTypeError, nearest

__all__ = ["known_arguments", "known_options", "name_hint", "option_hint", "verb_hint"]

P = ParamSpec("P")
T = TypeVar("T")

_BATCHES = "iterate over bk.Loader(pipe), which has"
_SHARD = "ranks are an option of the Loader: bk.Loader(pipe, shard=(rank, world))"
_DATASET = "bk.Loader(pipe, backend='torch').as_dataset() is the framework's own data set"
_WORKERS = "workers are options of the Loader: bk.Loader(pipe, executor='threads', workers=4)"

_VERBS: Mapping[str, str] = MappingProxyType(
    {
        "prefetch": "prefetch is an option of the Loader: bk.Loader(pipe, prefetch=2)",
        "prefetch_to_device": "it is an option of the Loader: bk.Loader(pipe, prefetch_to_device=True)",
        "enumerate": "enumerate(loader) numbers batches, and bk.Loader(pipe, lineage=True) says which rows they hold",
        "interleave": "it combines several pipelines: bk.interleave([a, b])",
        "concat": "it combines several pipelines: bk.concat([a, b])",
        "concatenate": "say bk.concat([a, b])",
        "chain": "say bk.concat([a, b])",
        "zip": "it combines several pipelines: bk.zip([a, b])",
        "mix": "it combines several pipelines: bk.mix([a, b], weights=[0.7, 0.3])",
        "sample_from_datasets": "say bk.mix([a, b], weights=[0.7, 0.3])",
        "shard": _SHARD,
        "split_by_node": _SHARD,
        "sharding_filter": _SHARD,
        "num_parallel_calls": _WORKERS,
        "mp_prefetch": _WORKERS,
        "to_iter_dataset": _DATASET,
        "to_tf_dataset": _DATASET,
        "to_torch": _DATASET,
        "as_dataset": _DATASET,
        "with_format": "say bk.Loader(pipe, backend='torch')",
        "set_format": "say bk.Loader(pipe, backend='torch')",
        "as_numpy_iterator": f"{_BATCHES} NumPy arrays without a backend",
        "next": f"{_BATCHES} iterators: next(iter(loader))",
        "iter": f"{_BATCHES} iterators: iter(loader)",
        "state_dict": f"{_BATCHES} state_dict() and load_state_dict()",
        "load_state_dict": f"{_BATCHES} state_dict() and load_state_dict()",
        "set_epoch": f"{_BATCHES} epochs of its own: each iteration is the next one, shuffled anew",
        "collate": "say pipe.batch(32, collate=fn)",
        "group_by_window": "say bucket_batch(size, boundaries=...)",
        "bucket_by_sequence_length": "say bucket_batch(size, boundaries=...)",
        "sliding_window": "say window(length, stride=1)",
        "unfold": "say window(length, stride=1)",
        "slice": "say skip(start).take(count)",
        "limit": "say take(count)",
        "head": "say take(count)",
        "transform": "say map(fn)",
        "select_columns": "say select('image', 'label')",
        "remove_columns": "say drop('image')",
        "rename_column": "say rename(old='new')",
        "rename_columns": "say rename(old='new')",
        "cast_column": "say cast(label='int32')",
        "astype": "say cast(label='int32')",
        "snapshot": "say cache('folder')",
        "cache_on_disk": "say cache('folder')",
        "save": "cache('folder') keeps rows in files; pipe.to_dict() is the description as JSON values",
        "reduce": "loop over bk.Loader(pipe)",
        "scan": "loop over bk.Loader(pipe)",
    }
)
"""Verbs of tf.data, Grain, torchdata, WebDataset and Hugging Face datasets that have another name or place here."""

_OPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "num_workers": "say workers=4",
        "worker_count": "say workers=4",
        "num_threads": "say executor='threads', workers=4",
        "max_workers": "say workers=4",
        "multiprocessing_context": "say executor='processes'",
        "persistent_workers": "leave it out: workers stay until the loader is closed",
        "worker_init_fn": "leave it out: workers need nothing seeded, random_map() draws by row",
        "batch_size": "batches are cut by the pipeline: bk.Loader(pipe.batch(32))",
        "batch_sampler": "batches are cut by the pipeline: bk.Loader(pipe.batch(32))",
        "drop_last": "say pipe.batch(32, remainder='drop')",
        "drop_remainder": "say pipe.batch(32, remainder='drop')",
        "shuffle": "shuffling is a verb of the pipeline: bk.Loader(pipe.shuffle(seed=0).batch(32))",
        "sampler": "the order is a verb of the pipeline: pipe.shuffle(seed=0), or bk.mix() for weights",
        "generator": "seeds belong to the stages: pipe.shuffle(seed=0), pipe.random_map(fn, seed=0)",
        "seed": "seeds belong to the stages: pipe.shuffle(seed=0), pipe.random_map(fn, seed=0)",
        "collate_fn": "say pipe.batch(32, collate=fn)",
        "transform": "functions are stages: pipe.map(fn)",
        "pin_memory": "leave it out: the backend pins memory where its device wants it",
        "pin_memory_device": "say device='cuda'",
        "prefetch_factor": "say prefetch=2",
        "buffer_size": "say prefetch=2",
        "rank": "say shard=(rank, world)",
        "num_replicas": "say shard=(rank, world)",
        "world_size": "say shard=(rank, world)",
        "num_shards": "say shard=(rank, world)",
        "shard_options": "say shard=(rank, world)",
        "num_epochs": "one iteration is one epoch: loop, or say pipe.repeat(n)",
        "framework": "say backend='torch'",
        "dtype": "say pipe.cast(image='float32')",
    }
)
"""Options of torch's DataLoader, Grain's and others that have another name or place here."""


_ARGUMENTS: Mapping[str, str] = MappingProxyType(
    {
        "batch_size": "the size comes first: batch(32)",
        "drop_last": "say remainder='drop'",
        "drop_remainder": "say remainder='drop'",
        "collate_fn": "say collate=fn",
        "batch_fn": "say collate=fn",
        "padded_shapes": "say length=64, or length={'tokens': 64}; without it the longest row of a batch decides",
        "padding_values": "say pad_value=0, or pad_value={'tokens': 0}",
        "bucket_boundaries": "say boundaries=[64, 128, 256]",
        "bucket_batch_sizes": "say bucket_batch(32), or max_tokens=4096",
        "buffer_size": "leave it out, as the order is of all rows; where they have no numbers, say window=1000",
        "reshuffle_each_iteration": "say reshuffle=False",
        "num_epochs": "say repeat(3)",
        "num_parallel_calls": _WORKERS,
        "num_workers": _WORKERS,
        "num_proc": _WORKERS,
        "deterministic": "leave it out: the order is always the same",
        "shift": "say stride=1",
    }
)
"""Arguments of verbs that have another name or place here."""

_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "DataLoader": "say bk.Loader(bk.from_sequence(dataset).shuffle(seed=0).batch(32), backend='torch')",
        "Dataset": "a data set with __len__ and __getitem__ goes into bk.from_sequence(dataset)",
        "MapDataset": "say bk.from_sequence(source)",
        "IterDataset": "say bk.from_generator(make)",
        "from_tensor_slices": "say from_arrays",
        "from_tensors": "say from_arrays",
        "from_dict": "say from_arrays",
        "from_list": "say from_sequence",
        "load_dataset": "say bk.from_sequence(dataset), which takes data sets of Hugging Face's as they are",
        "collate": "say pipe.batch(32, collate=fn)",
        "sample_from_datasets": "say mix",
        "chain": "say concat",
    }
)
"""Names in other libraries' modules that have another name here."""


def name_hint(name: str, names: Iterable[str]) -> str:
    """Return how a message about something that batchkit has not goes on; empty where nothing is like it.

    >>> name_hint("from_list", ["from_sequence"]), name_hint("from_array", ["from_arrays"])
    (': say from_sequence', "; did you mean 'from_arrays'?")
    """
    return f": {_NAMES[name]}" if name in _NAMES else nearest(name, list(names))


def verb_hint(name: str, verbs: Iterable[str]) -> str:
    """Return how a message about a pipeline without the attribute ``name`` goes on; empty where nothing is like it.

    >>> verb_hint("head", ["take"]), verb_hint("padded_batches", ["padded_batch"])
    (': say take(count)', "; did you mean 'padded_batch'?")
    """
    return f": {_VERBS[name]}" if name in _VERBS else nearest(name, list(verbs))


def option_hint(name: str, options: Iterable[str]) -> str:
    """Return the same of a loader's option.

    >>> option_hint("num_workers", ["workers"]), option_hint("devise", ["device"])
    (': say workers=4', "; did you mean 'device'?")
    """
    return f": {_OPTIONS[name]}" if name in _OPTIONS else nearest(name, list(options))


def known_options(init: Callable[P, None]) -> Callable[P, None]:
    """Return a loader's ``__init__`` that names what is meant by a keyword which it does not have."""
    names = list(inspect.signature(init).parameters)

    @functools.wraps(init)
    def checked(*args: P.args, **kwargs: P.kwargs) -> None:
        for name in kwargs:
            if name not in names:
                raise PipelineTypeError(f"Loader has no option {name!r}{option_hint(name, names)}")
        init(*args, **kwargs)

    return checked


def known_arguments(verb: Callable[P, T]) -> Callable[P, T]:
    """Return the same for a verb of the pipeline that hands no keywords on."""
    names = list(inspect.signature(verb).parameters)[1:]

    @functools.wraps(verb)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        for name in kwargs:
            if name not in names:
                hint = f": {_ARGUMENTS[name]}" if name in _ARGUMENTS else nearest(name, names)
                raise PipelineTypeError(f"{verb.__name__}() has no argument {name!r}{hint}")
        return verb(*args, **kwargs)

    return checked
