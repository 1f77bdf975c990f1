"""What stages are given: leaves by name, NumPy's numbers, and objects that another process has elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import batchkit as bk
from batchkit.stages import STAGES, Stage


def ragged() -> bk.Pipeline:
    return bk.from_ragged({"tokens": np.arange(1, 7)}, [0, 1, 3, 6])


def listed() -> bk.Pipeline:
    return bk.from_sequence([{"tokens": np.arange(size)} for size in (1, 2, 3)])


def same(row: Any) -> Any:
    return row


# -- leaves by name

MISNAMED: dict[str, tuple[Callable[[bk.Pipeline], bk.Pipeline], str]] = {
    "padded_batch(pad_value)": (lambda pipe: pipe.padded_batch(2, pad_value={"tokns": -1}), "padded_batch"),
    "padded_batch(length)": (lambda pipe: pipe.padded_batch(2, length={"tokns": 4}), "padded_batch"),
    "bucket_batch(pad_value)": (
        lambda pipe: pipe.bucket_batch(2, boundaries=[2, 4], pad_value={"tokns": -1}),
        "bucket_batch",
    ),
    "bucket_batch(pad_value), lengths known": (
        lambda pipe: pipe.bucket_batch(2, boundaries=[2, 4], length=np.array([1, 2, 3]), pad_value={"tokns": -1}),
        "bucket_batch",
    ),
    "pack(pad_value)": (lambda pipe: pipe.pack(4, pad_value={"tokns": -1}).batch(2), "pack"),
    "pack(length)": (lambda pipe: pipe.pack({"tokns": 4}).batch(2), "pack"),
}
misnamed = pytest.mark.parametrize("case", MISNAMED)


@misnamed
@pytest.mark.parametrize("stands", ["behind the source", "behind a filter"])
def test_a_leaf_that_is_not_there_is_named_when_the_loader_is_made(case: str, stands: str) -> None:
    written, verb = MISNAMED[case]
    pipe = ragged() if stands == "behind the source" else ragged().filter(lambda row: True)
    with pytest.raises(bk.MissingLeafError, match=rf"^{verb}.*no leaf 'tokns'; did you mean 'tokens'\?.*are: tokens"):
        bk.Loader(written(pipe))


@misnamed
@pytest.mark.parametrize(
    "made", [listed, lambda: ragged().map(same), lambda: bk.from_generator([{"tokens": np.arange(3)}] * 3)]
)
def test_a_leaf_that_only_rows_can_show_missing_is_named_with_the_first(
    case: str, made: Callable[[], bk.Pipeline]
) -> None:
    written, verb = MISNAMED[case]
    if "known" in case and made().source.kind == "generator":
        written = MISNAMED["bucket_batch(pad_value)"][0]  # rows of a generator have no numbers
    with (
        bk.Loader(written(made()), executor="inline") as loader,
        pytest.raises(bk.MissingLeafError, match=rf"{verb}.*no leaf 'tokns'; did you mean 'tokens'\?"),
    ):
        next(iter(loader))


def test_a_leaf_that_is_there_and_needs_no_filling_may_be_named() -> None:
    pipe = bk.from_ragged({"x": np.arange(3)}, [0, 1, 3], {"y": np.arange(2)})
    with bk.Loader(pipe.padded_batch(2, pad_value={"x": -1, "y": -2})) as loader:
        assert next(iter(loader))["x"].tolist() == [[0, -1], [1, 2]]


# -- numbers

GIVEN: dict[str, dict[str, Any]] = {
    "shuffle": {"seed": 3, "reshuffle": False, "window": 4},
    "repeat": {"count": 2},
    "take": {"count": 5},
    "skip": {"count": 5},
    "map": {"fn": same, "kwargs": {"size": 3, "part": 0.5, "on": True, "name": "x"}},
    "random_map": {"fn": same, "seed": 2, "kwargs": {"size": 3}},
    "filter": {"fn": same, "kwargs": {"size": 3}},
    "flat_map": {"fn": same, "kwargs": {"size": 3}},
    "window": {"length": 3, "stride": 2, "inside": True, "remainder": "keep"},
    "batch": {"size": 4, "remainder": "drop"},
    "padded_batch": {"size": 4, "length": {"x": [4, 2]}, "multiple_of": 2, "pad_value": {"x": 0.5}, "lengths": True},
    "bucket_batch": {"max_tokens": 64, "boundaries": [2, 4], "multiple_of": 2, "pad_value": 0.5, "lengths": True},
    "pack": {"length": {"x": 4}, "bins": 2, "pad_value": {"x": 0.5}},
    "unbatch": {},
    "rebatch": {"size": 4, "remainder": "drop"},
    "select": {"names": ["x"]},
    "drop": {"names": ["x"]},
    "rename": {"names": {"x": "y"}},
    "cast": {"dtypes": {"x": "int32"}},
    "cache": {"memory": 1000},
}


def numpys(value: Any) -> Any:
    """Return the same value as NumPy has it."""
    if isinstance(value, dict):
        return {key: numpys(part) for key, part in value.items()}
    if isinstance(value, list):
        return [numpys(part) for part in value]
    kinds = {bool: np.bool_, int: np.int32, float: np.float64, str: np.str_}
    return kinds[type(value)](value) if type(value) in kinds else value


def test_every_stage_is_looked_at() -> None:
    assert GIVEN.keys() == STAGES.keys()


@pytest.mark.parametrize("verb", GIVEN)
def test_numbers_of_numpy_describe_the_same_stage(verb: str) -> None:
    plain, other = STAGES[verb](**GIVEN[verb]), STAGES[verb](**numpys(GIVEN[verb]))
    assert other == plain
    assert (other.label, other.identity) == (plain.label, plain.identity)
    if "fn" not in GIVEN[verb]:  # whose functions are of no module that can be imported
        assert json.dumps(other.arguments()) == json.dumps(plain.arguments())


def rows_kept(row: Any, size: int) -> Any:
    return row


def test_a_pipeline_of_numpys_numbers_is_exported_and_resumed_as_one_of_pythons() -> None:
    def written(number: Callable[[int], Any]) -> bk.Pipeline:
        data = bk.from_arrays({"x": np.arange(40)})
        return data.shuffle(number(3)).map(rows_kept, size=number(2)).skip(number(4)).batch(number(4))

    with bk.Loader(written(np.int64), executor="inline") as loader, bk.Loader(written(int)) as resumed:
        batches = iter(loader)
        next(batches)
        state = json.loads(json.dumps(loader.state_dict()))
        resumed.load_state_dict(state)
        assert [batch["x"].tolist() for batch in resumed] == [batch["x"].tolist() for batch in batches]


@pytest.mark.parametrize("number", [np.array(4), type("Four", (), {"__index__": lambda self: 4})()])
def test_any_whole_number_is_an_int_in_a_label(number: Any) -> None:
    assert bk.from_arrays({"x": np.arange(8)}).batch(number).stages[0].label == "batch(size=4)"


# -- objects


class Tokenizer:
    """Shows where it lies in memory, as objects do."""


def tokenized(row: Any, **options: Any) -> Any:
    return row


def described() -> list[Any]:
    """Return what states are checked by, for functions with objects among their arguments."""
    given = {
        "tok": Tokenizer(),
        "more": [Tokenizer()],
        "again": tokenized,
        "table": np.arange(3),
        "names": {"b", "a", "c"},
    }
    pipe = bk.from_arrays({"x": np.arange(8)}).map(tokenized, **given)
    stream = bk.from_generator(tokenized, row=Tokenizer(), table=np.arange(3))
    return [stage.identity for stage in pipe.stages] + [stream.source.fingerprint()]


def test_a_function_and_a_class_of_the_script_have_one_name_in_all_processes() -> None:
    def called(row: Any) -> Any:
        return row

    class Rows(list[Any]):
        pass

    states = []
    for module in ("__main__", "__mp_main__"):  # as multiprocessing names it
        called.__module__ = Rows.__module__ = module
        with bk.Loader(bk.from_sequence(Rows(range(4))).map(called).batch(2)) as loader:
            states.append(loader.state_dict())
    assert states[0] == states[1]


def test_objects_are_described_alike_in_every_process() -> None:
    """Else a state could not be loaded by the next one."""
    code = "import json, runpy, sys; print(json.dumps(runpy.run_path(sys.argv[1], {}, sys.argv[2])['described']()))"
    command = [sys.executable, "-c", code, __file__, __name__]
    there = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(there.stdout) == described()
    assert not [line for line in described() if "0x" in line]


def test_objects_of_another_class_and_other_tables_are_told_apart() -> None:
    class Other(Tokenizer):
        """Another class."""

    def label(**given: Any) -> str:
        stage: Stage = bk.from_arrays({"x": np.arange(8)}).map(tokenized, **given).stages[0]
        return stage.label

    given = [{"tok": Tokenizer()}, {"tok": Other()}, {"tok": np.arange(3)}, {"tok": np.arange(3.0)}, {"tok": [1]}]
    assert len({label(**each) for each in given}) == len(given)
