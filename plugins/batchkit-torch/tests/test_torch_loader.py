"""Loader(pipe, backend="torch"): the same bytes as NumPy, no copy, and a batch that is kept never changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import batchkit as bk
from batchkit_torch.backend import TorchBackend

DTYPES = [
    "bool",
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    *("float16", "float32", "float64", "complex64", "complex128"),
]
EXTENDED = ["bfloat16", "float8_e4m3fn", "float8_e5m2"]


class Recording(TorchBackend):
    """Remembers where the slots are."""

    def __init__(self) -> None:
        super().__init__()
        self.slots: set[int] = set()

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        column = super().allocate(shape, dtype)
        self.slots.add(column.ctypes.data)
        return column


def columns(names: list[str], rows: int = 500) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(5)
    found = {}
    for name in names:
        dtype = np.dtype(name) if name in DTYPES else np.dtype(getattr(pytest.importorskip("ml_dtypes"), name))
        raw = rng.integers(0, 2 if name == "bool" else 256, (rows, 3 * dtype.itemsize), dtype=np.uint8)
        found[name] = raw.view(dtype)
    return found


def test_nothing_is_copied_after_the_gathering() -> None:
    backend = Recording()
    data = {"x": np.zeros((500, 3), np.float32), **columns(["bfloat16"])}
    with bk.Loader(bk.from_arrays(data).shuffle(0).batch(64), backend=backend, executor="threads", workers=2) as loader:
        for batch in loader:
            assert {tensor.data_ptr() for tensor in batch.values()} <= backend.slots
    assert len(backend.slots) < 2 * 8, "slots are not used again"


def test_a_slice_a_view_and_a_gradient_keep_the_memory_too() -> None:
    x = np.random.default_rng(0).standard_normal((2000, 8)).astype(np.float32)
    weight = torch.ones((8, 1), requires_grad=True)
    slices, losses = [], []
    loader = bk.Loader(bk.from_arrays({"x": x, "i": np.arange(2000)}).shuffle(1).batch(50), backend="torch")
    for batch in loader:
        rows = batch["i"].numpy().copy()
        slices.append((batch["x"].t()[:, 10:20], x[rows[10:20]].T))
        losses.append(((batch["x"] @ weight).sum(), x[rows].sum(axis=0)))
    assert len(slices) == 40
    for found, want in slices:
        np.testing.assert_array_equal(found.numpy(), want)
    for loss, want_gradient in losses:
        (gradient,) = torch.autograd.grad(loss, weight)
        np.testing.assert_allclose(gradient.numpy()[:, 0], want_gradient, rtol=1e-4, atol=1e-4)


def test_what_a_consumer_writes_stays_in_its_batch() -> None:
    x = np.ones((500, 4), np.float32)
    loader = bk.Loader(bk.from_arrays({"x": x}).batch(50), backend="torch")
    for _ in range(3):
        for batch in loader:
            assert bool((batch["x"] == 1).all())
            batch["x"].fill_(7)
    assert (x == 1).all()


@pytest.mark.parametrize(
    ("leaf", "says"),
    [
        (np.array(["a"] * 8), "leaf 'name' holds strings"),
        (np.array([b"a"] * 8), "leaf 'name' holds bytes"),
        (np.zeros(8, "datetime64[s]"), "leaf 'name' is datetime64"),
        (np.zeros(8, [("a", "i4"), ("b", "f4")]), "structured"),
        (np.zeros(8, np.longdouble), "which torch has not"),
    ],
)
def test_what_torch_has_not_is_refused_before_any_data_is_read(leaf: np.ndarray[Any, Any], says: str) -> None:
    pipe = bk.from_arrays({"x": np.zeros(8), "name": leaf}).batch(4)
    with pytest.raises(bk.BackendError, match=says):
        bk.Loader(pipe, backend="torch")
    assert len(list(bk.Loader(pipe.drop("name"), backend="torch"))) == 2


def test_an_unknown_device_is_refused_with_those_there_are() -> None:
    with pytest.raises(bk.BackendError, match=r"no device 'cuda:99'.*'cpu'"):
        bk.Loader(bk.from_arrays(np.zeros(8)).batch(4), backend="torch", device="cuda:99")


@pytest.mark.parametrize("executor", ["inline", "threads", "processes"])
def test_a_function_may_make_the_batch_of_tensors_as_collate_fn_does(executor: str) -> None:
    def padded(rows: list[Any]) -> Any:
        found = [torch.from_numpy(row["x"]) for row in rows]
        x = torch.nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=-1)
        return {"x": x, "longest": x.shape[1]}

    pipe = bk.from_ragged({"x": np.arange(10)}, [0, 1, 3, 6, 10]).batch(2, collate=padded)
    with bk.Loader(pipe, backend="torch", executor=executor) as loader:
        found = [(batch["x"].tolist(), batch["longest"]) for batch in loader]
    assert [x for x, _ in found] == [[[0, -1], [1, 2]], [[3, 4, 5, -1], [6, 7, 8, 9]]]
    assert [(longest.shape, int(longest)) for _, longest in found] == [((), 2), ((), 4)]


@pytest.mark.parametrize("first", ["numpy", "torch"])
def test_a_run_goes_on_with_another_framework(first: str) -> None:
    offsets = np.cumsum([0, *(1 + row % 7 for row in range(200))])
    rows = bk.from_ragged({"x": np.arange(offsets[-1])}, offsets)
    mixed = bk.mix([rows.shuffle(1), rows.filter(lambda row: len(row["x"]) > 3)], [2, 1], stop="all")
    pipe = mixed.shuffle(2, window=9).pack(16, bins=4).batch(4)
    with bk.Loader(pipe, executor="inline") as loader:
        whole = [{name: leaf.tolist() for name, leaf in batch.items()} for batch in loader]
    with bk.Loader(pipe, backend=first, executor="threads", workers=2) as loader:
        batches = iter(loader)
        for _ in range(5):
            next(batches)
        state = loader.state_dict()
    with bk.Loader(pipe, backend="torch" if first == "numpy" else "numpy", executor="inline") as loader:
        loader.load_state_dict(state)
        assert [{name: leaf.tolist() for name, leaf in batch.items()} for batch in loader] == whole[5:]


class Refilled(torch.utils.data.Dataset[Any]):
    """Rows in one tensor that is filled anew, or a view of it."""

    def __init__(self, view: bool) -> None:
        self.buffer, self.view = torch.zeros(3), view

    def __len__(self) -> int:
        return 20

    def __getitem__(self, number: int) -> Any:
        self.buffer[:] = number
        return self.buffer[:2] if self.view else self.buffer


@pytest.mark.parametrize("view", [False, True])
def test_a_data_set_may_fill_one_tensor_anew_for_every_row(view: bool) -> None:
    with bk.Loader(bk.from_sequence(Refilled(view)).batch(8), backend="torch", executor="inline") as loader:
        assert [row[0].item() for batch in loader for row in batch] == list(range(20))


class Tensors(torch.utils.data.Dataset[Any]):
    """Rows of tensors: a vector, a number, and one that is transposed."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, number: int) -> Any:
        return torch.arange(3.0) + number, torch.tensor(number), torch.arange(6).reshape(2, 3).t() * number


@pytest.mark.parametrize("executor", ["inline", "threads", "processes"])
def test_rows_of_tensors_are_stacked_as_torch_does(executor: str) -> None:
    with bk.Loader(bk.from_sequence(Tensors()).batch(8), backend="torch", executor=executor) as loader:
        batches = list(loader)
    wanted = list(torch.utils.data.DataLoader(Tensors(), batch_size=8))
    assert len(batches) == len(wanted)
    for batch, other in zip(batches, wanted, strict=True):
        for leaf, one in zip(batch, other, strict=True):
            assert leaf.dtype == one.dtype
            assert torch.equal(leaf, one)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (torch.zeros(3, dtype=torch.float64), "row 2: the only leaf is float64.3., but row 0 has float32.3."),
        (torch.zeros(4), "row 2: the only leaf is float32.4., but row 0 has float32.3."),
        (torch.zeros(3, requires_grad=True), "row 2: the only leaf is a Tensor that NumPy cannot take"),
        (torch.zeros(()), "row 2: the only leaf is float32, but row 0 has float32.3."),
    ],
)
def test_a_tensor_that_is_unlike_the_others_is_named(odd: torch.Tensor, message: str) -> None:
    pipe = bk.from_sequence([torch.zeros(3), torch.zeros(3), odd]).batch(3)
    with bk.Loader(pipe, backend="torch", executor="inline") as loader, pytest.raises(bk.SchemaError, match=message):
        next(iter(loader))
