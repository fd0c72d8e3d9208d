"""Reads the pickles of CIFAR without Python's unpickler, which can run code, and numpy's, which trusts pointers.

Only what these files need is understood: a dict of numbers, byte strings, lists of these, and arrays of bytes.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["read_batch"]

_RECONSTRUCT = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")  # of numpy 1 and 2
_NDARRAY, _DTYPE, _ENCODE = "numpy ndarray", "numpy dtype", "_codecs encode"  # Python 3 writes bytes as encoded text
_IMPORTED = frozenset((*_RECONSTRUCT, _NDARRAY, _DTYPE, _ENCODE))
_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_MARK = object()
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_CONSTANTS = {"MARK": _MARK, "NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_AS_GIVEN = (
    "BININT", "BININT1", "BININT2", "LONG1",
    "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
)  # fmt: skip


def read_batch(data: bytes) -> dict[bytes | str, Any]:
    """The content of a CIFAR file.

    Args:
        data: a pickle of protocol 2 to 5.

    Returns:
        Integers, bytes, text, None, lists and tuples of these, and uint8 arrays, by name.

    Raises:
        ValueError: if it is damaged, or holds or does anything else.
    """
    machine = _Machine()
    try:
        content = machine.run(io.BytesIO(data))
    except (IndexError, KeyError, TypeError, AttributeError, UnicodeError) as error:
        raise ValueError(f"its pickle contradicts itself ({type(error).__name__})") from None
    if type(content) is not dict:
        raise ValueError(f"it holds a {type(content).__name__}, not a dict")
    return {name: value.filled() if isinstance(value, _Array) else value for name, value in content.items()}


class _Name(str):
    """What a pickle imports; stands for it, and is nothing but its name."""


class _Bytes:
    """numpy's dtype of bytes."""


class _Array:
    """An array of bytes, until its state is known."""

    def __init__(self) -> None:
        self._values: NDArray[np.uint8] | None = None

    def fill(self, state: Any) -> None:
        version, shape, kind, fortran, values = state
        if version != 1 or not isinstance(kind, _Bytes) or type(values) is not bytes:
            raise ValueError("it holds an array that is not one of bytes")
        if type(shape) is not tuple or not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError("it holds an array without a shape")
        self._values = np.frombuffer(values, np.uint8).reshape(shape, order="F" if fortran else "C")

    def filled(self) -> NDArray[np.uint8]:
        if self._values is None:
            raise ValueError("it holds an array without values")
        return self._values


class _Machine:
    """The stack of a pickle, and the opcodes that are understood."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        push = self._stack.append
        self._steps: dict[str, Callable[[Any], object]] = {
            **{name: self._push_new(kind) for name, kind in _EMPTY.items()},
            **{name: self._push(value) for name, value in _CONSTANTS.items()},
            **dict.fromkeys(_AS_GIVEN, push),
            **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING"), lambda text: push(text.encode("latin-1"))),
            **dict.fromkeys(("BINPUT", "LONG_BINPUT"), self._memoize),
            **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda place: push(self._memo[place])),
            **dict.fromkeys(("PROTO", "FRAME"), lambda _: None),
            "TUPLE": lambda _: push(self._since_mark()),
            "TUPLE1": lambda _: push(self._last(1)),
            "TUPLE2": lambda _: push(self._last(2)),
            "TUPLE3": lambda _: push(self._last(3)),
            "MEMOIZE": lambda _: self._memoize(len(self._memo)),
            "APPEND": lambda _: self._extend(self._last(1)),
            "APPENDS": lambda _: self._extend(self._since_mark()),
            "SETITEM": lambda _: self._update(self._last(2)),
            "SETITEMS": lambda _: self._update(self._since_mark()),
            "GLOBAL": self._import,
            "STACK_GLOBAL": lambda _: self._import(" ".join(self._last(2))),
            "REDUCE": lambda _: self._call(*self._last(2)),
            "BUILD": lambda _: self._build(self._stack.pop()),
        }

    def run(self, pickled: io.BytesIO) -> Any:
        """What is left on the stack at the end."""
        while code := pickled.read(1):
            opcode = _OPCODES[code]
            if opcode.name == "STOP":
                (content,) = self._stack
                return content
            if opcode.name not in self._steps:  # before its argument is read, which may be text to evaluate
                raise ValueError(f"it uses the opcode {opcode.name}, which no CIFAR file needs")
            if opcode.name == "GLOBAL":  # whose reader in pickletools takes escapes
                self._import(" ".join(pickled.readline().decode("ascii").rstrip("\n") for _ in range(2)))
            else:
                self._steps[opcode.name](opcode.arg.reader(pickled) if opcode.arg else None)
        raise ValueError("it is cut off")

    def _push_new(self, make: Callable[[], Any]) -> Callable[[Any], object]:
        return lambda _: self._stack.append(make())

    def _push(self, value: object) -> Callable[[Any], object]:
        return lambda _: self._stack.append(value)

    def _last(self, count: int) -> tuple[Any, ...]:
        if len(self._stack) < count:
            raise IndexError
        values = tuple(self._stack[-count:])
        del self._stack[-count:]
        return values

    def _since_mark(self) -> tuple[Any, ...]:
        place = len(self._stack) - 1
        while self._stack[place] is not _MARK:
            place -= 1
        values = tuple(self._stack[place + 1 :])
        del self._stack[place:]
        return values

    def _memoize(self, place: int) -> None:
        self._memo[place] = self._stack[-1]

    def _extend(self, values: tuple[Any, ...]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise TypeError
        target.extend(values)

    def _update(self, values: tuple[Any, ...]) -> None:
        target, names = self._stack[-1], values[::2]
        if type(target) is not dict or not all(type(name) in (bytes, str) for name in names):
            raise TypeError
        target.update(zip(names, values[1::2], strict=True))

    def _import(self, name: str) -> None:
        if name not in _IMPORTED:
            raise ValueError(f"it imports {name.replace(' ', '.')}, which no CIFAR file needs")
        self._stack.append(_Name(name))

    def _call(self, name: Any, arguments: Any) -> None:
        made: Any = None
        if type(name) is _Name and type(arguments) is tuple:
            if name in _RECONSTRUCT and arguments == (_Name(_NDARRAY), (0,), b"b"):
                made = _Array()
            elif name == _DTYPE and arguments in (("u1", 0, 1), (b"u1", 0, 1)):
                made = _Bytes()
            elif name == _ENCODE and len(arguments) == 2 and arguments[1] == "latin1" and type(arguments[0]) is str:
                made = arguments[0].encode("latin-1")
        if made is None:
            raise ValueError("it makes something else than an array of bytes")
        self._stack.append(made)

    def _build(self, state: Any) -> None:
        target = self._stack[-1]
        if isinstance(target, _Array) and type(state) is tuple and len(state) == 5:
            target.fill(state)
        elif not isinstance(target, _Bytes):  # whose state is passed over
            raise ValueError("it makes something else than an array of bytes")
