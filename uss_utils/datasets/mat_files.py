"""Arrays of MATLAB files, versions 5 to 7: numbers, and those in structs.

scipy reads such files, too, but its compiled reader trusts them: a damaged one ends the
process. Here every length is checked before it is used. A file is a header of 128 bytes
and elements, each a tag (type, size) and content, padded to 8 bytes; a variable is an
element of elements: flags, shape, name, values. Layout: "MAT-File Format", MathWorks.
"""

import struct
import zlib
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np

from uss_utils.datasets.files import reason

_HEADER = 128
_HEAD = 1024  # bytes that hold the shape and name of any variable
_MATRIX, _COMPRESSED = 14, 15
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8"}
_TYPES |= {12: "i8", 13: "u8"}
_STRUCT, _NUMBERS = 2, range(6, 16)
_COMPLEX = 0x0800  # flag of a variable


def read(path: Path, *names: str) -> np.ndarray:
    """An array of numbers.

    Args:
        path: the file.
        names: of a variable; of a field, too, where that is a struct.

    Returns:
        Of the type it is stored in (MATLAB stores whole numbers in few bytes), with two
        axes or more, each of any length.

    Raises:
        OSError: the file is absent, damaged, or of another version.
        ValueError: it holds no such array.
    """
    whole = ".".join(names)
    try:
        held = []
        for order, name, body in _variables(path):
            held.append(name)
            if name == names[0]:
                return _array(_field(body(), order, names[1:]), order)
    except _Other as error:
        raise ValueError(f"{whole!r} in {path} is {error}; expected numbers") from error
    except Exception as error:
        raise _unreadable(path, error) from error
    raise ValueError(
        f"{path} holds {', '.join(held) or 'nothing'}, but no array named {whole!r}"
    )


def shape(path: Path, name: str) -> tuple[int, ...]:
    """Shape of a variable, from its header; empty if there is no such variable.

    Raises:
        OSError: see :func:`read`.
    """
    try:
        for order, found, body in _variables(path):
            if found == name:
                return _head(body(_HEAD), order)[2]
    except Exception as error:
        raise _unreadable(path, error) from error
    return ()


class _Other(Exception):
    """What there is instead of numbers."""


def _unreadable(path: Path, error: Exception) -> OSError:
    text = getattr(error, "strerror", None) or reason(error)
    return OSError(f"cannot read {path}: {text}; replace the file or remove it")


def _variables(path: Path) -> Iterator[tuple]:
    """Byte order, name, and a function that gives the content, of every variable."""
    data = memoryview(path.read_bytes())
    order = _byte_order(data[:_HEADER])
    at = _HEADER
    while at < len(data):
        kind, content, at = _element(data, at, order, padded=False)
        body = _body(kind, content, order)
        yield order, _head(body(_HEAD), order)[3], body


def _byte_order(header: memoryview) -> str:
    text, marks = bytes(header[:19]), bytes(header[124:128])
    if text.startswith((b"MATLAB 7.3", b"\x89HDF")):
        raise ValueError("it is of version 7.3 (HDF5); save it with MATLAB's -v7")
    order = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}.get(marks)
    if order is None:
        raise ValueError("it is no MATLAB file of version 5 to 7")
    return order


def _body(kind: int, content: memoryview, order: str):
    """A function that gives what is inside of a variable's element.

    It takes how many bytes are wanted at most, None: all.
    """
    if kind == _MATRIX:
        return lambda most=None: content[:most]
    if kind != _COMPRESSED:
        raise ValueError(f"an element of type {kind} where a variable was expected")

    def unpack(most: int | None = None) -> memoryview:
        tag = zlib.decompressobj().decompress(content, 8)
        inner, size = struct.unpack(order + "II", tag)
        if inner != _MATRIX:
            raise ValueError("something else than a variable is compressed in it")
        wanted = size if most is None else min(size, most)
        # The declared size bounds what a small file can unpack to.
        stream = zlib.decompressobj()
        found = stream.decompress(content, 8 + wanted)
        if len(found) < 8 + wanted:
            raise ValueError("it is cut off")
        if wanted == size:  # one step more, to where the checksum is
            stream.decompress(stream.unconsumed_tail, 8)
            if not stream.eof:
                raise ValueError("more is compressed in it than it says")
        return memoryview(found)[8:]

    return unpack


def _element(
    data: memoryview, at: int, order: str, padded: bool = True
) -> tuple[int, memoryview, int]:
    """Type and content of the element at a place, and where the next one begins."""
    if at + 8 > len(data):
        raise ValueError("it is cut off")
    kind, size = struct.unpack_from(order + "II", data, at)
    start, end = at + 8, at + 8 + size
    if kind >> 16:  # a small one: its content is in the tag
        kind, size = kind & 0xFFFF, kind >> 16
        start, end = at + 4, at + 8
        if size > 4:
            raise ValueError("an element has a size that cannot be")
    elif padded:
        end += -size % 8
    if start + size > len(data):
        raise ValueError("it is cut off")
    return kind, data[start : start + size], end


def _head(body: memoryview, order: str) -> tuple[int, bool, tuple[int, ...], str, int]:
    """Class of a variable, whether it is complex, shape, name, where values begin."""
    _, flags, at = _element(body, 0, order)
    _, sides, at = _element(body, at, order)
    _, name, at = _element(body, at, order)
    (word,) = struct.unpack_from(order + "I", flags)
    shape = tuple(np.frombuffer(sides, order + "i4").tolist())
    if len(shape) < 2 or min(shape) < 0:
        raise ValueError(f"a variable has the shape {shape}")
    text = bytes(name).decode("ascii", "replace")
    return word & 0xFF, bool(word & _COMPLEX), shape, text, at


def _field(body: memoryview, order: str, names: tuple[str, ...]) -> memoryview:
    """A variable, or a field of it where it is a struct."""
    if not names:
        return body
    kind, _, shape, _, at = _head(body, order)
    if kind != _STRUCT or not prod(shape):
        raise _Other("no struct" if kind != _STRUCT else "an empty struct")
    _, length, at = _element(body, at, order)
    _, table, at = _element(body, at, order)
    (width,) = struct.unpack_from(order + "i", length)
    if width < 1:
        raise ValueError("the fields of a struct have no names")
    fields = [
        bytes(table[i : i + width]).partition(b"\0")[0].decode("ascii", "replace")
        for i in range(0, len(table), width)
    ]
    if names[0] not in fields:
        raise _Other(f"absent among the fields {', '.join(fields) or 'of a struct'}")
    for _ in range(fields.index(names[0]) + 1):
        _, content, at = _element(body, at, order)
    return _field(content, order, names[1:])


def _array(body: memoryview, order: str) -> np.ndarray:
    kind, is_complex, shape, _, at = _head(body, order)
    if kind not in _NUMBERS or is_complex:
        raise _Other("complex" if kind in _NUMBERS else "something else (a text, cell)")
    stored, content, _ = _element(body, at, order)
    if stored not in _TYPES:
        raise ValueError(f"values are of the unknown type {stored}")
    values = np.frombuffer(content, order + _TYPES[stored])
    if len(values) != prod(shape):
        raise ValueError(f"{len(values)} values for an array of shape {shape}")
    # MATLAB's first axis runs fastest.
    native = values.astype(_TYPES[stored])
    return np.ascontiguousarray(native.reshape(shape, order="F"))
