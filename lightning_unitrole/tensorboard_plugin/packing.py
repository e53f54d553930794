"""A container for a few named arrays: what the tab's tensors hold in the log, and what its server sends to the browser.

Layout: the four bytes ``URB1``, the length of the header (uint32, little endian), the header (JSON in UTF-8, padded
with spaces), then the arrays, little endian, each at an offset that is a multiple of eight. The header is
``{"info": {...}, "arrays": [[name, dtype, shape, offset], ...]}`` with offsets counted from the end of the header.
Browsers can look at the arrays where they lie, without copying them. In the log a container is deflated: it halves the
file, and TensorBoard's checksum in pure Python costs more than the deflating.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

MAGIC = b"URB1"
ALIGNMENT = 8
DTYPES = ("u1", "u2", "u4", "f2", "f4", "f8")
"""The array types that the reader in the browser knows."""


MAX_BYTES = 1 << 25
"""Size of the largest container that is read."""
MAX_HEADER_BYTES = 1 << 20
"""Size of the largest header: parsed JSON can take 50 times as much memory as its text, and as much time."""
MAX_ARRAYS = 64
MAX_DIMENSIONS = 8


def deflate(container: bytes) -> bytes:
    """Make a container small for the log."""
    return zlib.compress(container, level=1)


def inflate(data: bytes, limit: int = MAX_BYTES) -> bytes:
    """Inverse of :func:`deflate`.

    Args:
        data: deflated bytes.
        limit: size beyond which nothing is inflated: a thousand bytes can stand for a million.

    Raises:
        ValueError: if ``data`` is damaged, or would grow beyond ``limit``: a log may come from anybody.
    """
    machine = zlib.decompressobj()
    try:
        container = machine.decompress(data, limit)
    except zlib.error:
        raise ValueError("the bytes are damaged") from None
    if not machine.eof:
        raise ValueError(f"the bytes are cut off, or stand for more than {limit} bytes")
    return container


def read_json(data: bytes) -> Any:
    """JSON from a log.

    Raises:
        ValueError: whatever is wrong with it, be it that it is nested too deeply.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def pack(info: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    """Write ``info`` and ``arrays`` into one container.

    Args:
        info: anything that strict JSON can hold, so no NaN.
        arrays: arrays of a dtype in :data:`DTYPES`, any shape.

    Raises:
        TypeError: if an array has another dtype.

    Example:
        >>> info, arrays = unpack(pack({"epoch": 3}, {"roles": np.array([0, 3], np.uint8)}))
        >>> info["epoch"], arrays["roles"].tolist()
        (3, [0, 3])
    """
    offset = 0
    described: list[list[Any]] = []
    chunks: list[memoryview | bytes] = []
    for name, array in arrays.items():
        kind = f"{array.dtype.kind}{array.dtype.itemsize}"
        if kind not in DTYPES:
            raise TypeError(f"Array {name!r} has dtype {array.dtype}; expected one of {', '.join(DTYPES)}.")
        data = np.ascontiguousarray(array, dtype=f"<{kind}").reshape(-1).view(np.uint8).data
        described.append([name, kind, list(array.shape), offset])
        chunks += [data, bytes(-len(data) % ALIGNMENT)]
        offset += len(data) + len(chunks[-1])
    header = json.dumps({"info": dict(info), "arrays": described}, allow_nan=False).encode()
    header += b" " * (-(len(MAGIC) + 4 + len(header)) % ALIGNMENT)
    return b"".join([MAGIC, struct.pack("<I", len(header)), header, *chunks])


def header_bytes(data: bytes) -> int:
    """How long a container says that its header is; 0 where it is no container."""
    return int(struct.unpack_from("<I", data, 4)[0]) if data[:4] == MAGIC and len(data) >= 8 else 0


def unpack(data: bytes, max_header: int = MAX_HEADER_BYTES) -> tuple[dict[str, Any], dict[str, Array]]:
    """Inverse of :func:`pack`; the arrays are read-only views of ``data``.

    Args:
        data: a container.
        max_header: number of bytes beyond which no header is read.

    Raises:
        ValueError: if ``data`` is not such a container, or one whose arrays are not there in full.
    """
    info, described, start = _header(data, max_header)
    return info, dict(_view(data, start, entry) for entry in described)


def unpack_some(
    deflated: bytes, names: Collection[str], limit: int = MAX_BYTES, max_header: int = MAX_HEADER_BYTES
) -> tuple[dict[str, Any], dict[str, Array], int, int]:
    """Some arrays of a deflated container, which is inflated only as far as they reach.

    Inflating is most of the work of reading a long log, and views of all analyses mostly want what comes first.

    Args:
        deflated: a deflated container. What lies behind the arrays may be damaged, and nobody notices.
        names: names of the arrays.
        limit: size beyond which nothing is inflated.
        max_header: number of bytes beyond which no header is read.

    Returns:
        The header's info, the arrays that are there, and the sizes of the header and, as that has it, of the whole.

    Raises:
        ValueError: as :func:`inflate` and :func:`unpack` do, of what was looked at.

    Example:
        >>> whole = deflate(pack({}, {"roles": np.zeros(3, np.uint8), "rank": np.zeros(3, np.uint16)}))
        >>> list(unpack_some(whole, ["roles"])[1])
        ['roles']
    """
    machine = zlib.decompressobj()
    container = _inflated(machine, b"", deflated, min(limit, _BEGINNING))
    start = 8 + header_bytes(container)
    if start <= min(limit, 8 + max_header):
        container = _inflated(machine, container, machine.unconsumed_tail, start)
    info, described, start = _header(container, max_header)
    found = [_described(entry) for entry in described]
    ends = {name: start + offset + count * int(kind[1]) for name, kind, _, offset, count in found}
    end = max((ends[name] for name in names if name in ends), default=start)
    container = _inflated(machine, container, machine.unconsumed_tail, min(end, limit))
    arrays = dict(_view(container, start, entry) for entry in described if entry[0] in names)
    return info, arrays, start - 8, max(ends.values(), default=start)


_BEGINNING = 1 << 13  # holds the header, and often the first array with it


def _inflated(machine: Any, container: bytes, more: bytes, size: int) -> bytes:
    """The container up to so many bytes, as far as there are any."""
    if len(container) >= size:
        return container
    try:
        return container + bytes(machine.decompress(more, size - len(container)))
    except zlib.error:
        raise ValueError("the bytes are damaged") from None


def _header(data: bytes, max_header: int) -> tuple[dict[str, Any], list[Any], int]:
    """Info and descriptions of the arrays, and where the arrays begin."""
    if data[:4] != MAGIC or len(data) < 8:
        raise ValueError("the bytes are not a container of the unit roles tab")
    length = header_bytes(data)
    start = 8 + length
    if start > len(data) or length > max_header:
        raise ValueError("the header is longer than it may be")
    try:
        header = read_json(data[8:start])
    except ValueError:
        raise ValueError("the header is damaged") from None
    info, described = (header.get("info"), header.get("arrays")) if isinstance(header, dict) else (None, None)
    if not isinstance(info, dict) or not isinstance(described, list) or len(described) > MAX_ARRAYS:
        raise ValueError("the header is damaged")
    return info, described, start


def _described(described: Any) -> tuple[str, str, list[int], int, int]:
    """Name, type, shape, offset and number of entries of an array, as far as they are possible."""
    if not (isinstance(described, list) and len(described) == 4):
        raise ValueError("the header is damaged")
    name, kind, shape, offset = described
    if not isinstance(name, str) or not isinstance(kind, str) or kind not in DTYPES:
        raise ValueError("there is an array of an unknown type")
    sizes = [*shape, offset] if isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS else [None]
    if not all(type(size) is int and 0 <= size <= MAX_BYTES for size in sizes):
        raise ValueError("there is an array of an impossible size")
    return name, kind, shape, offset, math.prod(shape)


def _view(data: bytes, start: int, entry: Any) -> tuple[str, Array]:
    """One array of a container, looked at where it lies; no number is believed before it is compared with the bytes."""
    name, kind, shape, offset, count = _described(entry)
    if offset + count * int(kind[1]) > len(data) - start:
        raise ValueError("there are fewer bytes than the header says")
    return name, np.frombuffer(data, f"<{kind}", count, start + offset).reshape(shape)
