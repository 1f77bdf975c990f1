"""What tells one function, object or table of values from another: a digest of what it is made of."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from batchkit.functions import home_of

__all__ = ["WHOLE", "identity"]

WHOLE = 64 << 20  # bytes of an array that are hashed
_SAMPLED = 4096
_MANY = 65536  # entries of a list or dict that are looked at; of more only some spread over it
_DEEP = 40


def identity(*values: Any) -> str:
    """Return a digest that differs where the values differ; the same in every process.

    A function counts by its compiled code, its defaults, what it closes over, and the functions, classes and
    values of its own code base that it refers to, also where these are in other modules. A module that it holds as
    a value (closes over, has as a default) counts by its file. What belongs to an installed package counts by its
    name and that package's version, an object by its class and attributes.

    >>> identity(lambda x: x + 1) == identity(lambda x: x + 1), identity(lambda x: x + 1) == identity(lambda x: x + 2)
    (True, False)
    """
    return _Digester().of(values).hex()


class _Digester:
    """Digests of values, each made once; nested ones by the digests of their parts."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[bytes, Any]] = {}  # with the value, so that no other one gets its id
        self._open: list[int] = []

    def of(self, value: Any) -> bytes:
        """Return the digest of a value."""
        kind = type(value)
        if value is None or kind in (bool, int, float, complex, str, type(Ellipsis)):
            return _hashed((f"{kind.__name__}:{value!r}",))
        if id(value) in self._known:
            return self._known[id(value)][0]
        if id(value) in self._open:  # it refers to itself
            return _hashed((f"{len(self._open) - self._open.index(id(value))} steps up",))
        if len(self._open) > _DEEP:
            return _hashed((f"deep:{home_of(kind)}.{kind.__qualname__}",))
        self._open.append(id(value))
        try:
            digest = _hashed(self._parts(value, kind))
        finally:
            self._open.pop()
        self._known[id(value)] = digest, value
        return digest

    def _parts(self, value: Any, kind: type) -> Iterator[bytes | str]:
        if isinstance(value, (bytes, bytearray)):
            yield kind.__name__
            yield bytes(value)
        elif isinstance(value, (np.ndarray, np.generic)):
            yield from self._array(np.asarray(value))
        elif isinstance(value, Mapping):
            yield f"{kind.__qualname__}:{len(value)}"
            for key in _some(list(value)):
                yield from (self.of(key), self.of(value[key]))
        elif isinstance(value, (set, frozenset)):  # whose order differs from process to process
            yield f"{kind.__qualname__}:{len(value)}"
            yield from sorted(self.of(part) for part in value)
        elif isinstance(value, (list, tuple)):
            yield f"{kind.__qualname__}:{len(value)}"
            yield from (self.of(part) for part in _some(value))
        elif isinstance(value, types.CodeType):
            yield from self._code(value)
        elif isinstance(value, types.FunctionType):
            yield from self._function(value)
        elif isinstance(value, types.MethodType):
            yield from (self.of(value.__func__), self.of(value.__self__))
        elif isinstance(value, functools.partial):
            yield from (self.of(value.func), self.of(value.args), self.of(value.keywords))
        elif isinstance(value, types.ModuleType):
            yield from self._module(value)
        elif isinstance(value, type):
            yield from self._class(value)
        elif isinstance(value, np.dtype):
            yield f"dtype:{value!r}"
        else:
            yield from self._object(value, kind)

    def _array(self, array: np.ndarray[Any, Any]) -> Iterator[bytes | str]:
        yield f"array:{array.dtype!r}:{array.shape}"
        if array.dtype.hasobject:
            yield self.of(array.ravel().tolist())
            return
        if array.nbytes > WHOLE and array.ndim:
            array = array[np.linspace(0, len(array) - 1, min(_SAMPLED, len(array))).astype(np.int64)]
        plain = np.ascontiguousarray(array)
        yield plain.tobytes() if plain.dtype.kind != "T" else repr(plain.tolist())

    def _code(self, code: types.CodeType) -> Iterator[bytes | str]:
        """Say what a function does; where it is written, and in which line, does not count."""
        yield code.co_code
        yield repr((code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_flags))
        yield repr((code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount))
        yield getattr(code, "co_exceptiontable", b"")
        yield self.of(code.co_consts)

    def _function(self, function: types.FunctionType) -> Iterator[bytes | str]:
        if _installed(function.__code__.co_filename):
            yield f"function:{function.__module__}.{function.__qualname__}:{_version(function.__module__)}"
            return
        yield "function"
        yield from (self.of(function.__code__), self.of(function.__defaults__), self.of(function.__kwdefaults__))
        for cell in function.__closure__ or ():
            try:
                yield self.of(cell.cell_contents)
            except ValueError:  # a name that is not bound yet
                yield "empty"
        names = {*_names(function.__code__)}
        for name in sorted(names & set(function.__globals__)):
            yield f"global:{name}"
            yield from self._referred(function.__globals__[name], names, set())

    def _referred(self, value: Any, names: set[str], modules: set[str]) -> Iterator[bytes | str]:
        """Look at what code refers to by names: values, and what it takes out of modules of the same code base."""
        if not _own_module(value):
            yield self.of(value)
            return
        yield f"module:{value.__name__}"
        if value.__name__ not in modules:
            for name in sorted(names & set(vars(value))):
                yield f"attribute:{name}"
                yield from self._referred(vars(value)[name], names, modules | {value.__name__})

    def _module(self, module: types.ModuleType) -> Iterator[bytes | str]:
        """A module that is handed on as a value: what is taken out of it is not known, so that all of it counts."""
        yield f"module:{module.__name__}:{_version(module.__name__)}"
        if not _own_module(module):
            return
        with contextlib.suppress(OSError):
            yield Path(str(module.__file__)).read_bytes()
        for _, part in sorted(vars(module).items()):
            home = sys.modules.get(getattr(part, "__module__", None) or "") if callable(part) else part
            if home is not module and _own_module(home):
                yield self.of(part)

    def _class(self, kind: type) -> Iterator[bytes | str]:
        yield f"class:{home_of(kind)}.{kind.__qualname__}:{_version(kind.__module__)}"
        module = sys.modules.get(kind.__module__)
        if kind.__module__ == "builtins" or (module is not None and _installed(getattr(module, "__file__", ""))):
            return
        yield from (self.of(base) for base in kind.__bases__)
        for name, part in sorted(vars(kind).items()):
            inner = part.__func__ if isinstance(part, (staticmethod, classmethod)) else part
            inner = inner.fget if isinstance(inner, property) else inner
            if isinstance(inner, types.FunctionType) or not (name.startswith("_") or callable(inner)):
                yield name
                yield self.of(inner)

    def _object(self, value: Any, kind: type) -> Iterator[bytes | str]:
        yield self.of(kind)
        held = dict(getattr(value, "__dict__", {}))
        for base in kind.__mro__:
            slots = vars(base).get("__slots__", ())
            names = (slots,) if isinstance(slots, str) else tuple(slots)
            held.update({name: getattr(value, name) for name in names if name != "__dict__" and hasattr(value, name)})
        if held:
            yield self.of(held)
        elif isinstance(value, (types.BuiltinFunctionType, np.ufunc)):
            yield f"{getattr(value, '__module__', '')}.{value.__name__}"
        elif "0x" not in (text := repr(value)):  # an address would differ in every process
            yield text


def _hashed(parts: Iterable[bytes | str]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.digest()


def _some(values: Any) -> Any:
    if len(values) <= _MANY:
        return values
    return [values[place] for place in np.linspace(0, len(values) - 1, _MANY).astype(np.int64).tolist()]


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _own_module(value: Any) -> bool:
    """Whether this is a module that belongs neither to Python nor to an installed package."""
    return isinstance(value, types.ModuleType) and not _installed(getattr(value, "__file__", None))


@functools.cache
def _roots() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    return tuple({paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def _installed(file: str | None) -> bool:
    """Say whether code belongs to Python or to an installed package, which its version stands for."""
    return file is None or file.startswith("<frozen") or file.startswith(_roots())


def _version(module: str | None) -> str:
    top = sys.modules.get((module or "").partition(".")[0])
    version = getattr(top, "__version__", "")
    return version if isinstance(version, str) else ""
