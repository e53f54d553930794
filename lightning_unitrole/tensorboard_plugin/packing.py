"""A container for a few named arrays: what the tab's tensors hold in the log, and what its server sends to the browser.

Layout: the four bytes ``URB1``, the length of the header (uint32, little endian), the header (JSON in UTF-8, padded
with spaces), then the arrays, little endian, each at an offset that is a multiple of eight. The header is
``{"info": {...}, "arrays": [[name, dtype, shape, offset], ...]}`` with offsets counted from the end of the header.
Browsers can look at the arrays where they lie, without copying them. In the log a container is deflated: it halves the
file, and TensorBoard's checksum in pure Python costs more than the deflating.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

MAGIC = b"URB1"
ALIGNMENT = 8
DTYPES = ("u1", "u2", "u4", "f2", "f4", "f8")
"""The array types that the reader in the browser knows."""


MAX_BYTES = 1 << 28


def deflate(container: bytes) -> bytes:
    """Make a container small for the log."""
    return zlib.compress(container, level=1)


def inflate(data: bytes) -> bytes:
    """Inverse of :func:`deflate`.

    Raises:
        ValueError: if ``data`` is damaged, or would grow beyond :data:`MAX_BYTES`: a log may come from anybody.
    """
    machine = zlib.decompressobj()
    try:
        container = machine.decompress(data, MAX_BYTES)
    except zlib.error as error:
        raise ValueError(f"These bytes are damaged: {error}.") from error
    if not machine.eof:
        raise ValueError(f"These bytes are cut off, or hold more than {MAX_BYTES} bytes.")
    return container


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
    described, chunks = [], []
    for name, array in arrays.items():
        kind = f"{array.dtype.kind}{array.dtype.itemsize}"
        if kind not in DTYPES:
            raise TypeError(f"Array {name!r} has dtype {array.dtype}; expected one of {', '.join(DTYPES)}.")
        data = np.ascontiguousarray(array, dtype=f"<{kind}").tobytes()
        described.append([name, kind, list(array.shape), offset])
        chunks.append(data + bytes(-len(data) % ALIGNMENT))
        offset += len(chunks[-1])
    header = json.dumps({"info": dict(info), "arrays": described}, allow_nan=False).encode()
    header += b" " * (-(len(MAGIC) + 4 + len(header)) % ALIGNMENT)
    return b"".join([MAGIC, struct.pack("<I", len(header)), header, *chunks])


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    """Inverse of :func:`pack`; the arrays are read-only views of ``data``.

    Raises:
        ValueError: if ``data`` is not such a container.
    """
    if data[:4] != MAGIC or len(data) < 8:
        raise ValueError("These bytes are not a container of the unit roles tab.")
    (length,) = struct.unpack_from("<I", data, 4)
    header = json.loads(data[8 : 8 + length])
    arrays = {}
    for name, kind, shape, offset in header["arrays"]:
        if kind not in DTYPES:
            raise ValueError(f"Array {name!r} has the unknown dtype {kind!r}.")
        count = int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.frombuffer(data, f"<{kind}", count, 8 + length + offset).reshape(shape)
    return header["info"], arrays
