"""loader.as_dataset(): a torch IterableDataset, bare and in a DataLoader; the oracle is the NumPy backend."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

import batchkit as bk

ROWS = 100
X = np.random.default_rng(0).standard_normal((ROWS, 4)).astype(np.float32)
Y = np.arange(ROWS)

pytestmark = [
    # Python 3.12 and later, and JAX once it was used, warn of every fork of a process that has threads.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning"),
    # torch advises to have no more workers than cores.
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


def pipeline(size: int = 16) -> bk.Pipeline:
    return bk.from_arrays({"x": X, "y": Y}).shuffle(seed=3).batch(size)


def order(batches: Any) -> list[list[int]]:
    found = []
    for batch in batches:
        np.testing.assert_array_equal(batch["x"].numpy(), X[batch["y"].numpy()])
        found.append(batch["y"].tolist())
    return found


def wanted(pipe: bk.Pipeline, epoch: int) -> list[list[int]]:
    return [batch["y"].tolist() for batch in bk.Loader(pipe, executor="inline").iterate(epoch)]


def workers(dataset: Any, count: int = 2, method: str = "fork", **options: Any) -> DataLoader[Any]:
    # The timeout turns a worker that hangs into an error.
    return DataLoader(
        dataset, batch_size=None, num_workers=count, multiprocessing_context=method, timeout=120, **options
    )


def test_is_an_iterable_dataset_with_a_length() -> None:
    dataset = bk.Loader(pipeline(), backend="torch").as_dataset()
    assert isinstance(dataset, IterableDataset)
    assert len(dataset) == 7
    assert len(DataLoader(dataset, batch_size=None)) == 7


def test_has_no_length_where_none_is_known() -> None:
    dataset = bk.Loader(bk.from_arrays({"y": Y}).repeat().batch(4), backend="torch").as_dataset()
    with pytest.raises(TypeError, match="endless"):
        len(dataset)


@pytest.mark.parametrize(
    "options", [{"workers": 2}, {"executor": "threads", "workers": 2, "timeout": 60}, {"memory_limit": "1GB"}]
)
def test_in_workers_it_does_not_matter_which_executor_the_loader_has(options: dict[str, Any]) -> None:
    with bk.Loader(pipeline(), backend="torch", **options) as loader:
        assert order(workers(loader.as_dataset(), 1)) == wanted(pipeline(), 0)


@pytest.mark.parametrize("wrapped", [False, True])
def test_without_workers_each_iteration_is_the_loaders_next_epoch(wrapped: bool) -> None:
    loader = bk.Loader(pipeline(), backend="torch")
    dataset = loader.as_dataset()
    batches = DataLoader(dataset, batch_size=None) if wrapped else dataset
    assert [order(batches) for _ in range(3)] == [wanted(pipeline(), epoch) for epoch in range(3)]
    assert loader.epoch == 3


@pytest.mark.parametrize("wrapped", [False, True])
def test_without_workers_the_state_of_the_loader_is_exact(wrapped: bool) -> None:
    loader = bk.Loader(pipeline(), backend="torch")
    dataset = loader.as_dataset()
    batches = iter(DataLoader(dataset, batch_size=None) if wrapped else dataset)
    for _ in range(3):
        next(batches)
    state = loader.state_dict()
    assert (state["epoch"], state["step"]) == (0, 3)
    other = bk.Loader(pipeline(), backend="torch")
    other.load_state_dict(state)
    assert order(other.as_dataset()) == wanted(pipeline(), 0)[3:]


def test_the_conversion_of_a_data_loader_copies_nothing() -> None:
    loader = bk.Loader(pipeline(), backend="torch", executor="inline")
    batches = list(DataLoader(loader.as_dataset(), batch_size=None))
    assert len(batches) == len(loader) > 0
    for batch in batches:
        assert type(batch["x"]) is torch.Tensor
        assert batch["x"].untyped_storage().nbytes() == batch["x"].numel() * 4


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_give_the_same_batches_in_the_same_order(count: int, persistent: bool) -> None:
    batches = workers(bk.Loader(pipeline(), backend="torch").as_dataset(), count, persistent_workers=persistent)
    assert [order(batches) for _ in range(3)] == [wanted(pipeline(), epoch) for epoch in range(3)]


@pytest.mark.parametrize(("method", "persistent"), [("spawn", False), ("forkserver", True)])
def test_workers_that_are_not_forked_take_lambdas_along(method: str, persistent: bool) -> None:
    pipe = pipeline().map(lambda batch: {**batch, "twice": batch["x"] * 2})
    loader = bk.Loader(pipe, backend="torch")
    next(iter(loader))
    loader.load_state_dict({**loader.state_dict(), "epoch": 4, "step": 5})
    batches = workers(loader.as_dataset(), method=method, persistent_workers=persistent)
    found = [list(batches) for _ in range(2)]
    assert [order(epoch) for epoch in found] == [wanted(pipe, 4)[5:], wanted(pipe, 5)]
    for batch in found[1]:
        assert torch.equal(batch["twice"], batch["x"] * 2)


def test_more_workers_than_batches() -> None:
    pipe = pipeline(size=60)
    batches = workers(bk.Loader(pipe, backend="torch").as_dataset(), 3)
    assert [order(batches) for _ in range(2)] == [wanted(pipe, 0), wanted(pipe, 1)]


def test_an_empty_epoch_in_workers() -> None:
    assert order(workers(bk.Loader(pipeline().take(0), backend="torch").as_dataset())) == []


def test_a_generator_in_workers() -> None:
    def rows() -> Iterator[dict[str, Any]]:
        for row in range(50):
            yield {"x": X[row], "y": np.int64(row)}

    batches = workers(bk.Loader(bk.from_generator(rows).batch(8), backend="torch").as_dataset())
    for _ in range(2):
        assert order(batches) == [list(range(start, min(start + 8, 50))) for start in range(0, 50, 8)]


def test_a_shard_in_workers() -> None:
    batches = workers(bk.Loader(pipeline(), backend="torch", shard=(1, 2)).as_dataset())
    assert order(batches)[:6] == [rows[8:] for rows in wanted(pipeline(), 0)[:6]]


def test_an_early_break_goes_on_with_the_next_epoch() -> None:
    batches = workers(bk.Loader(pipeline(), backend="torch").as_dataset())
    for _ in batches:
        break
    assert order(batches) == wanted(pipeline(), 1)


def test_two_iterations_at_a_time_are_two_epochs() -> None:
    batches = workers(bk.Loader(pipeline(), backend="torch").as_dataset())
    pairs = list(zip(batches, batches, strict=True))
    found = [order(side) for side in zip(*pairs, strict=True)]
    assert sorted(found) == sorted([wanted(pipeline(), 0), wanted(pipeline(), 1)])


def test_reseeding_torch_before_each_epoch_is_no_obstacle() -> None:
    batches = workers(bk.Loader(pipeline(), backend="torch").as_dataset())
    found = []
    for _ in range(3):
        torch.manual_seed(0)
        found.append(order(batches))
    assert found == [wanted(pipeline(), epoch) for epoch in range(3)]


@pytest.mark.parametrize("options", [{}, {"persistent_workers": True}], ids=["fresh", "persistent"])
def test_set_epoch_chooses_the_next_epoch_in_workers(options: dict[str, Any]) -> None:
    dataset = bk.Loader(pipeline(), backend="torch").as_dataset()
    batches = workers(dataset, **options)
    found = [order(batches)]
    dataset.set_epoch(5)
    found += [order(batches), order(batches)]
    dataset.set_epoch(0)
    found.append(order(batches))
    assert found == [wanted(pipeline(), epoch) for epoch in (0, 5, 6, 0)]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_loader_put_to_where_it_stood_is_followed(start: str) -> None:
    loader = bk.Loader(pipeline(), backend="torch")
    batches = workers(loader.as_dataset(), method=start)
    found = [order(batches), order(batches)]
    loader.set_epoch(0)
    found += [order(batches), order(batches)]
    loader.load_state_dict(loader.state_dict())
    found.append(order(batches))
    assert found == [wanted(pipeline(), epoch) for epoch in (0, 1, 0, 1, 0)]


def test_set_epoch_chooses_the_next_epoch_of_the_loader() -> None:
    loader = bk.Loader(pipeline(), backend="torch")
    dataset = loader.as_dataset()
    next(iter(dataset))
    dataset.set_epoch(5)
    assert loader.epoch == 5
    assert [order(dataset), order(loader)] == [wanted(pipeline(), 5), wanted(pipeline(), 6)]


def test_set_epoch_refuses_what_is_no_epoch() -> None:
    dataset = bk.Loader(pipeline(), backend="torch").as_dataset()
    with pytest.raises(bk.PipelineError, match="epoch"):
        dataset.set_epoch(-1)


def test_workers_begin_where_the_loader_stands_and_follow_it() -> None:
    loader = bk.Loader(pipeline(), backend="torch")
    batches = workers(loader.as_dataset())
    loader.load_state_dict({**loader.state_dict(), "epoch": 2, "step": 3})
    assert [order(batches), order(batches)] == [wanted(pipeline(), 2)[3:], wanted(pipeline(), 3)]
    assert (loader.state_dict()["epoch"], loader.state_dict()["step"]) == (2, 3)
    loader.load_state_dict({**loader.state_dict(), "epoch": 8, "step": 0})
    assert order(batches) == wanted(pipeline(), 8)


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")  # said where there is no accelerator
def test_pin_memory_is_harmless_without_an_accelerator() -> None:
    batches = workers(bk.Loader(pipeline(), backend="torch").as_dataset(), pin_memory=True)
    assert order(batches) == wanted(pipeline(), 0)


def test_batches_from_workers_that_are_kept_never_change() -> None:
    batches = workers(bk.Loader(pipeline(size=2), backend="torch").as_dataset(), prefetch_factor=4)
    kept = list(batches)
    assert order(kept) == wanted(pipeline(size=2), 0)


def fails_on_step_one(batch: dict[str, Any]) -> dict[str, Any]:
    if 1 in batch["y"]:
        raise ValueError("the user's own words")
    return batch


def test_an_error_in_a_worker_arrives_and_the_rest_can_still_be_had() -> None:
    pipe = pipeline().map(fails_on_step_one)
    position = next(step for step, rows in enumerate(wanted(pipeline(), 0)) if 1 in rows)
    # The schema of a pipeline with functions is read from its first batch, so that one must be well.
    assert position > 0
    batches = iter(workers(bk.Loader(pipe, backend="torch").as_dataset()))
    found: list[Any] = []
    message = ""
    for _ in range(30):
        try:
            found.append(next(batches)["y"].tolist())
        except StopIteration:
            break
        except bk.StageError as exc:
            found.append("error")
            message = str(exc)
    assert "fails_on_step_one" in message
    assert "ValueError: the user's own words" in message
    expected: list[Any] = wanted(pipeline(), 0)
    expected[position] = "error"
    assert found == expected


def test_workers_can_be_forked_after_torch_and_threads_were_used() -> None:
    # Both are known to hang a forked child: OpenMP's threads, and locks held by threads that are not there.
    big = torch.ones(600, 600)
    for _ in range(3):
        big = (big @ big).clamp(max=1)
    pipe = pipeline().map(
        lambda b: {**b, "product": (torch.ones(300, 300) @ torch.ones(300, 300)).numpy()[: len(b["y"])]}
    )
    loader = bk.Loader(pipe, backend="torch", workers=2, prefetch=4)
    running = iter(loader)
    next(running)
    assert order(workers(loader.as_dataset())) == wanted(pipeline(), 0)[1:]
    running.close()


def test_a_copy_by_pickling_stands_where_the_loader_stands() -> None:
    loader = bk.Loader(pipeline().map(lambda batch: batch), backend="torch")
    dataset = loader.as_dataset()
    batches = iter(dataset)
    for _ in range(3):
        next(batches)
    copy = pickle.loads(pickle.dumps(dataset))
    assert len(copy) == 7
    assert order(copy) == wanted(pipeline(), 0)[3:]
    assert order(batches) == wanted(pipeline(), 0)[3:]


def failing(row: Any) -> Any:
    if row["y"] % 7 == 3:
        raise ValueError("an odd one")
    return row


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_have_the_options_of_the_loader_however_they_are_started(method: str) -> None:
    pipe = bk.from_arrays({"y": Y}).shuffle(seed=3).map(failing).batch(16)
    options: dict[str, Any] = {"on_error": bk.Skip(50), "lineage": True, "executor": "threads", "workers": 1}
    with bk.Loader(pipe, **options) as plain:
        rows = [(batch["y"].tolist(), batch["lineage"]["row"].tolist()) for batch in plain]
    assert sum(len(ys) for ys, _ in rows) == sum(int(y) % 7 != 3 for y in Y)
    with bk.Loader(pipe, backend="torch", **options) as loader:
        batches = list(workers(loader.as_dataset(), method=method))
    assert [(batch["y"].tolist(), batch["lineage"]["row"].tolist()) for batch in batches] == rows


def odd_row(row: Any) -> bool:
    return bool(row["row"] % 2)


def test_set_epoch_in_the_middle_of_an_epoch_whose_batches_are_cut_in_order() -> None:
    pipe = bk.from_arrays({"row": np.arange(60)}).shuffle(1).filter(odd_row).batch(4)
    loader = bk.Loader(pipe, backend="torch")
    with loader:
        dataset = loader.as_dataset()
        next(iter(dataset))
        dataset.set_epoch(3)
        again = [batch["row"].tolist() for batch in dataset]
    with bk.Loader(pipe) as plain:
        assert again == [batch["row"].tolist() for batch in plain.iterate(3)]
        with loader.replicate() as other:
            assert [batch["row"].tolist() for batch in workers(other.as_dataset())] == [
                batch["row"].tolist() for batch in plain.iterate(0)
            ]
