"""Files of named arrays that are never left half-written and never trusted when they are read."""

from __future__ import annotations

import json
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_unitrole.errors import DataError

MAX_BYTES = 8 * 2**30
"""Largest archive, unpacked, that is read."""

MOST_GROWTH, ALWAYS_READ = 100, 256 * 2**20
"""An archive that grows by more than this factor when it is unpacked is read only up to so many bytes."""

BROKEN = (
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    OverflowError,
    EOFError,
    RuntimeError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
)
"""What reading a damaged file raises, in one place or another."""


def write_arrays(path: str | Path, arrays: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and a JSON description as a compressed ``.npz`` archive, which loads without pickle.

    It is written beside ``path`` and moved there when it is whole, so that an interruption or a full disk leaves the
    file of before.
    """
    path = Path(path)
    packed: dict[str, Any] = {key: value.numpy() for key, value in arrays.items()}
    handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(file, meta=np.array(json.dumps(meta)), **packed)
            file.flush()
            os.fsync(file.fileno())
        Path(beside).chmod(_usual_mode())
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def read_arrays(path: str | Path, *, what: str, writer: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_arrays` wrote.

    Args:
        path: the file.
        what: what it should be, for messages: ``"unit report"``.
        writer: what writes such files, for messages.

    Raises:
        DataError: if the file is something else, damaged, or larger than :data:`MAX_BYTES` when unpacked.
    """
    expected = f"expected a file that {writer} wrote."
    with open(path, "rb"):  # that it cannot be opened is told by the operating system
        pass
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except (*BROKEN, OSError) as error:
        raise DataError(f"{path} is not a {what}: it is no .npz archive; {expected}") from error
    if size > MAX_BYTES or size > max(ALWAYS_READ, MOST_GROWTH * Path(path).stat().st_size):
        raise DataError(f"{path} is not a {what}: it unpacks to {size / 2**30:.1f} GiB; {expected}")
    try:
        with np.load(path, allow_pickle=False) as stored:
            if "meta" not in stored.files:
                raise DataError(f"{path} is not a {what}: it has no 'meta' entry; {expected}")
            meta = json.loads(str(stored["meta"]))
            arrays = {key: torch.from_numpy(stored[key]) for key in stored.files if key != "meta"}
    except DataError:
        raise
    except (*BROKEN, OSError) as error:
        raise DataError(f"{path} is a damaged {what}: {type(error).__name__}: {error}; {expected}") from error
    if not isinstance(meta, dict):
        raise DataError(f"{path} is not a {what}: its 'meta' entry is a {type(meta).__name__}; {expected}")
    return arrays, meta


def _usual_mode() -> int:
    """Permissions of a file that is created in the usual way; temporary files are private."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
