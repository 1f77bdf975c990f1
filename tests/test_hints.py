"""Names and ways of writing that other loaders have: the message says what they are called here."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import batchkit as bk
from batchkit import peers, transforms
from batchkit.random import RowRandom, ScalarRandom


def rows() -> bk.Pipeline:
    return bk.from_arrays({"y": np.arange(10)})


def told(error: type[Exception], call: Callable[[], Any]) -> str:
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


# -- a pipeline is no iterable


def test_iterating_over_a_pipeline_names_the_loader() -> None:
    assert "bk.Loader(pipe.batch(n))" in told(TypeError, lambda: list(rows()))
    assert "use bk.Loader(pipe)" in told(TypeError, lambda: list(rows().batch(2)))


def test_indexing_a_pipeline_names_take_and_the_loader() -> None:
    message = told(TypeError, lambda: rows()[3])
    assert "pipe.skip(start).take(count)" in message
    assert "bk.Loader(pipe.batch(n))" in message


@pytest.mark.parametrize(
    ("name", "mend"),
    [
        ("prefetch", "prefetch is an option of the Loader: bk.Loader(pipe, prefetch=2)"),
        ("padded_batches", "did you mean 'padded_batch'?"),
        ("enumerate", "enumerate(loader)"),
        ("interleave", "bk.interleave([a, b])"),
        ("to_iter_dataset", ".as_dataset()"),
        ("shard", "shard=(rank, world)"),
        ("suffle", "did you mean 'shuffle'?"),
        ("nothing_like_it", "a pipeline has no 'nothing_like_it'"),
    ],
)
def test_a_verb_that_a_pipeline_has_not_is_answered_with_the_mend(name: str, mend: str) -> None:
    assert mend in told(AttributeError, lambda: getattr(rows(), name))


def test_protocols_find_nothing_on_a_pipeline() -> None:
    for name in ("__len__", "__array__", "__deepcopy__", "_repr_html_", "no_such_verb"):
        assert not hasattr(rows(), name)
    assert bool(rows())


def test_a_pipeline_is_copied_and_pickled_as_before() -> None:
    pipe = rows().shuffle(3).batch(2)
    assert copy.copy(pipe) == pipe
    assert pickle.loads(pickle.dumps(pipe)).stages == pipe.stages
    assert copy.deepcopy(pipe).stages == pipe.stages


def test_what_a_property_raises_stays_what_it_is() -> None:
    class Broken:
        batched = False

        @property
        def parts(self) -> Any:
            raise AttributeError("of the source's own")

    class Pipe(bk.Pipeline):
        @property
        def own(self) -> Any:
            return self.source.parts

    assert told(AttributeError, lambda: Pipe(Broken()).own) == "of the source's own"


# -- options of a loader


@pytest.mark.parametrize(
    ("option", "mend"),
    [
        ("num_workers", "workers=4"),
        ("batch_size", "bk.Loader(pipe.batch(32))"),
        ("drop_last", "remainder='drop'"),
        ("shuffle", "pipe.shuffle(seed=0)"),
        ("collate_fn", "pipe.batch(32, collate=fn)"),
        ("prefetch_factor", "prefetch=2"),
        ("rank", "shard=(rank, world)"),
        ("devise", "did you mean 'device'?"),
    ],
)
def test_an_option_that_a_loader_has_not_is_answered_with_the_mend(option: str, mend: str) -> None:
    options: dict[str, Any] = {option: 4}
    message = told(TypeError, lambda: bk.Loader(rows().batch(2), **options))
    assert f"Loader has no option {option!r}" in message
    assert mend in message
    with bk.Loader(rows().batch(2)) as loader:
        assert f"Loader has no option {option!r}" in told(bk.PipelineError, lambda: loader.replicate(**options))


def test_the_signature_of_a_loader_is_its_own() -> None:
    parameters = inspect.signature(bk.Loader).parameters
    assert {"pipeline", "backend", "workers", "shard"} <= set(parameters)
    assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def test_hints_are_for_names_that_are_not_there() -> None:
    assert not any(hasattr(bk.Pipeline, verb) for verb in peers._VERBS)
    assert not set(inspect.signature(bk.Loader).parameters) & set(peers._OPTIONS)


@pytest.mark.parametrize("workers", ["auto", 0, 1, 4])
def test_the_inline_executor_takes_what_it_does_anyway(workers: Any) -> None:
    with bk.Loader(rows().batch(10), executor="inline", workers=workers) as loader:
        assert loader.workers == 0
        assert next(iter(loader))["y"].tolist() == list(range(10))


@pytest.mark.parametrize(("name", "meant"), [("tf", "tensorflow"), ("np", "numpy"), ("TF", "tensorflow")])
def test_a_backend_may_be_meant_by_its_short_name(name: str, meant: str) -> None:
    assert f"did you mean {meant!r}?" in told(bk.BackendError, lambda: bk.Loader(rows().batch(2), backend=name))


def test_one_plugin_needs_no_list(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "import batchkit as bk\n"
        "class Own(bk.NumpyBackend):\n    name = 'own'\n"
        "@bk.hookimpl\ndef batchkit_backends(): return {'own': Own}\n"
    )
    for given in (str(file), [str(file)]):
        with bk.Loader(rows().batch(10), backend="own", plugins=given) as loader:
            assert loader.backend.name == "own"


# -- several pipelines


@pytest.mark.parametrize("verb", [bk.concat, bk.zip, bk.interleave, bk.mix])
def test_pipelines_given_one_by_one_are_answered_with_a_list(verb: Any) -> None:
    message = told(TypeError, lambda: verb(rows(), rows()))
    assert f"give a list, bk.{verb.__name__}([a, b])" in message


@pytest.mark.parametrize("verb", [bk.concat, bk.interleave, bk.mix])
def test_one_pipeline_is_answered_with_a_list(verb: Any) -> None:
    assert f"bk.{verb.__name__}([a, b])" in told(TypeError, lambda: verb(rows()))


# -- draws


@pytest.mark.parametrize(
    ("rng", "generator"),
    [
        (RowRandom((0,), 0, np.arange(3)), "rng.generator(i) is NumPy's own for row i"),
        (ScalarRandom((0,), 0, 1), "rng.generator() is NumPy's own"),
    ],
    ids=["batch", "row"],
)
def test_a_draw_that_there_is_not_names_the_others_and_the_generator(rng: Any, generator: str) -> None:
    message = told(AttributeError, lambda: rng.permutation)
    assert "rng has no 'permutation' (draws: random, uniform, normal, standard_normal, integers, bernoulli, " in message
    assert generator in message
    assert "did you mean 'integers'?" in told(AttributeError, lambda: rng.randint)
    assert not hasattr(rng, "__array__")


def test_the_draws_that_messages_name_are_all_there_are() -> None:
    from batchkit.random.draws import DRAWS

    methods = {name for name, value in vars(RowRandom.__mro__[1]).items() if inspect.isfunction(value)}
    assert {name for name in methods if not name.startswith("_")} == set(DRAWS)


# -- functions in the wrong stage


def drawing(row: Any, rng: Any) -> Any:
    return row


@pytest.mark.parametrize(
    "function",
    [transforms.random_flip, transforms.mixup, drawing, functools.partial(transforms.random_crop, padding=1)],
    ids=["random_flip", "mixup", "of a user's", "partial"],
)
def test_a_function_that_draws_is_sent_from_map_to_random_map(function: Any) -> None:
    assert "Use random_map()" in told(TypeError, lambda: rows().batch(2).map(function))


def test_a_filter_that_draws_is_sent_to_a_random_map_in_front() -> None:
    assert "random_map() in front of it" in told(TypeError, lambda: rows().filter(drawing))


def test_a_function_whose_rng_is_given_is_no_mistake() -> None:
    assert rows().map(drawing, rng=3).map(lambda row, rng=None: row).map(np.negative).map(lambda rng: rng)


@pytest.mark.parametrize("function", [transforms.normalize, transforms.one_hot, transforms.pad_to])
def test_a_transform_in_front_of_batch_is_refused_like_a_random_one(function: Any) -> None:
    assert "works on whole batches. Put it behind batch()" in told(bk.PipelineError, lambda: rows().map(function))
    random = told(bk.PipelineError, lambda: rows().random_map(transforms.random_flip))
    assert "works on whole batches. Put it behind batch()" in random
    assert rows().batch(2).map(function)


# -- arguments of verbs and sources


def test_a_cast_or_rename_without_a_leaf_says_how_to_name_one() -> None:
    pipe: Any = rows()
    assert "cast(image='float32'), not cast('float32')" in told(TypeError, lambda: pipe.cast("float32"))
    assert "rename(old='new'), not rename('y')" in told(TypeError, lambda: pipe.rename("y"))


def test_a_list_of_rows_is_sent_to_from_sequence() -> None:
    assert "For rows say from_sequence()" in told(bk.SchemaError, lambda: bk.from_arrays([{"y": 1}, {"y": 2}]))


def test_a_column_of_objects_is_sent_to_a_dtype_or_to_from_sequence() -> None:
    column = np.array(["a", 1], object)
    message = told(bk.SchemaError, lambda: bk.from_arrays({"y": column}))
    assert "array.astype(str), or rows by from_sequence()" in message
    assert bk.from_arrays({"y": column.astype(str)})


@pytest.mark.parametrize("source", [bk.from_npy, bk.from_npz])
def test_a_folder_instead_of_a_file_is_refused_by_name(source: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(3))
    message = told(FileNotFoundError, lambda: source(tmp_path))
    assert "is a folder. Give the file in it, such as " in message
    assert "x.npy" in message
    assert told(bk.SourceError, lambda: source(tmp_path)) == message


# -- arguments of verbs, and names of the module


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda pipe: pipe.batch(batch_size=4),
            "no argument 'batch_size': the size comes first: batch(32)",
        ),
        (lambda pipe: pipe.batch(4, drop_last=True), "batch() has no argument 'drop_last': say remainder='drop'"),
        (lambda pipe: pipe.batch(4, collate_fn=list), "batch() has no argument 'collate_fn': say collate=fn"),
        (lambda pipe: pipe.padded_batch(4, padding_values=0), "has no argument 'padding_values': say pad_value=0"),
        (lambda pipe: pipe.shuffle(buffer_size=100), "shuffle() has no argument 'buffer_size': leave it out"),
        (lambda pipe: pipe.batch(4, remaider="drop"), "has no argument 'remaider'; did you mean 'remainder'?"),
        (lambda pipe: pipe.take(number=3), "take() has no argument 'number'"),
    ],
)
def test_an_argument_that_a_verb_has_not_is_answered_with_the_mend(call: Callable[[Any], Any], message: str) -> None:
    assert message in told(bk.PipelineError, lambda: call(rows()))
    assert message in told(TypeError, lambda: call(rows()))


@pytest.mark.parametrize("verb", ["map", "filter", "flat_map"])
def test_keywords_of_functions_are_handed_on(verb: str) -> None:
    pipe = getattr(rows(), verb)(lambda row, batch_size: row, batch_size=3)
    assert pipe.stages[0].kwargs == {"batch_size": 3}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("DataLoader", "'DataLoader': say bk.Loader(bk.from_sequence(dataset)"),
        ("from_tensor_slices", ": say from_arrays"),
        ("from_array", "; did you mean 'from_arrays'?"),
        ("nothing_like_it", "module 'batchkit' has no attribute 'nothing_like_it'"),
    ],
)
def test_a_name_that_batchkit_has_not_is_answered_with_the_mend(name: str, message: str) -> None:
    assert message in told(AttributeError, lambda: getattr(bk, name))
