"""npz and safetensors opened without trusting them: sizes are checked before anything is decompressed or
mapped.
"""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from opdtheory.audit.batch import InputError
from opdtheory.audit.readers.arrays import Column

MAX_HEADER = 16 << 20
MAX_RATIO = 1100
"""deflate cannot compress by more than about 1032; a member that claims more is forged."""
MAX_MEMBER = 1 << 40
BIG = 256 << 20
BIG_RATIO = 200
"""A member of more than 256 MB that shrank 200-fold holds no log-probabilities."""

_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}


def bf16_to_float(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bit patterns (uint16) → float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def npz_columns(path: Path) -> dict[str, Column]:
    """The arrays of an npz file, read in stretches of their first axis; object arrays (pickles) are
    refused.
    """
    source = str(path)
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise InputError(source, "", f"a damaged or truncated zip ({error})", "an npz file") from None
    columns: dict[str, Column] = {}
    with archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if not info.filename.endswith(".npy"):
                raise InputError(
                    source, f"member {info.filename!r}", "no .npy array", "only arrays in an npz file"
                )
            if name in columns:
                raise InputError(
                    source, f"member {info.filename!r}", "a duplicate key", "distinct array names"
                )
            ratio = info.file_size / max(1, info.compress_size)
            if (
                ratio > MAX_RATIO
                or info.file_size > MAX_MEMBER
                or (info.file_size > BIG and ratio > BIG_RATIO)
            ):
                text = f"{info.file_size} bytes from {info.compress_size} compressed ones (a zip bomb?)"
                raise InputError(
                    source, f"member {info.filename!r}", text, f"a compression ratio below {BIG_RATIO}"
                )
            columns[name] = _npy_column(path, info, source)
    return columns


def _npy_column(path: Path, info: zipfile.ZipInfo, source: str) -> Column:
    where = f"member {info.filename!r}"
    try:
        with zipfile.ZipFile(path) as archive, archive.open(info) as stream:
            version = np.lib.format.read_magic(stream)
            reader = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, fortran, dtype = reader(stream, max_header_size=10_000)
            header = stream.tell()
    except (
        ValueError,
        OSError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise InputError(
            source, where, f"an unreadable npy header ({error})", "an array saved by numpy"
        ) from None
    if dtype.hasobject:
        raise InputError(
            source,
            where,
            "an array of Python objects (pickle)",
            "a plain numeric array; pickles are never loaded",
        )
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if size != info.file_size - header:
        found = f"{info.file_size - header} bytes of data"
        raise InputError(source, where, found, f"{size} bytes for shape {shape} of {dtype}")
    if fortran and len(shape) > 1:
        raise InputError(source, where, "Fortran order", "C order (np.ascontiguousarray)")
    fetch = _forward_reader(path, info, header, tuple(shape), dtype, source)
    by_token = None
    if len(shape) == 3:
        by_token = _forward_reader(path, info, header, (shape[0] * shape[1], shape[2]), dtype, source)
    return Column(tuple(shape), dtype.kind, fetch, by_token)


def _forward_reader(
    path: Path, info: zipfile.ZipInfo, header: int, shape: tuple[int, ...], dtype: np.dtype, source: str
) -> Callable[[int, int], np.ndarray]:
    """Rows of a zip member in increasing order; going back reopens the member."""
    row = int(np.prod(shape[1:], dtype=object)) * dtype.itemsize
    state: dict[str, Any] = {}

    def fetch(start: int, stop: int) -> np.ndarray:
        cached = state.get("block")
        if cached is not None and cached[0] == (start, stop):
            return cached[1]
        begin = header + start * row
        try:
            if state.get("stream") is None or state["at"] > begin:
                state["archive"] = zipfile.ZipFile(path)
                state["stream"] = state["archive"].open(info)
                state["at"] = 0
            while state["at"] < begin:
                step = len(state["stream"].read(min(1 << 20, begin - state["at"])))
                if not step:
                    raise EOFError("end of data")
                state["at"] += step
            data = state["stream"].read((stop - start) * row)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            state.clear()
            raise InputError(
                source, f"member {info.filename!r} rows {start}..{stop - 1}", str(error), "intact data"
            ) from None
        if len(data) != (stop - start) * row:
            raise InputError(
                source,
                f"member {info.filename!r}",
                f"{len(data)} bytes",
                f"{(stop - start) * row}: truncated",
            )
        state["at"] += len(data)
        block = np.frombuffer(data, dtype=dtype).reshape((stop - start, *shape[1:]))
        state["block"] = ((start, stop), block) if len(data) < BIG else None
        return block

    return fetch


def safetensors_columns(path: Path) -> dict[str, Column]:
    """The tensors of a safetensors file, memory-mapped; bfloat16 becomes float32 as it is read."""
    source = str(path)
    total = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(8)
        if len(head) < 8:
            raise InputError(source, "header", f"{total} bytes", "a safetensors file")
        (length,) = struct.unpack("<Q", head)
        if length > min(MAX_HEADER, total - 8):
            raise InputError(
                source,
                "header",
                f"a header of {length} bytes in a file of {total}",
                f"at most {MAX_HEADER} bytes",
            )
        raw = stream.read(length)
    try:
        table = json.loads(raw.decode("utf-8"), object_pairs_hook=unique_keys)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InputError(source, "header", str(error)[:80], "a JSON header") from None
    if not isinstance(table, dict):
        raise InputError(source, "header", type(table).__name__, "a JSON object")
    columns = {}
    for name, entry in table.items():
        if name == "__metadata__" or (isinstance(entry, dict) and entry.get("shape") == []):
            continue  # scalars are no columns
        columns[name] = _tensor_column(path, name, entry, 8 + length, total, source)
    return columns


def _tensor_column(path: Path, name: str, entry: Any, base: int, total: int, source: str) -> Column:
    where = f"tensor {name!r}"
    try:
        kind, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise InputError(source, where, f"{str(entry)[:60]!r}", "dtype, shape and data_offsets") from None
    if not all(type(n) is int and 0 <= n < MAX_MEMBER for n in shape):
        raise InputError(source, where, f"shape {list(shape)}"[:80], "non-negative integers")
    if kind not in _DTYPES:
        raise InputError(source, where, f"dtype {kind!r}", f"one of {', '.join(_DTYPES)}")
    dtype = np.dtype(_DTYPES[kind])
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    good = isinstance(begin, int) and isinstance(end, int) and 0 <= begin <= end
    if not good or end - begin != size or base + end > total:
        found = f"bytes {begin}..{end} for shape {shape} of {kind} in a file of {total} bytes"
        raise InputError(source, where, found, f"{size} bytes inside the file")
    if size == 0:
        empty = np.zeros(shape, np.float32 if kind == "BF16" else dtype)
        rows = empty.reshape(-1, shape[2]) if len(shape) == 3 and shape[2] else None
        by_none = None if rows is None else lambda a, b: rows[a:b]
        return Column(shape, "f" if kind == "BF16" else dtype.kind, lambda a, b: empty[a:b], by_none)
    view = np.memmap(path, dtype=dtype, mode="r", offset=base + begin, shape=shape)
    flat = view.reshape(-1, shape[2]) if len(shape) == 3 else None
    if kind == "BF16":
        by_token = None if flat is None else lambda a, b: bf16_to_float(flat[a:b])
        return Column(shape, "f", lambda a, b: bf16_to_float(view[a:b]), by_token)
    return Column(shape, dtype.kind, lambda a, b: view[a:b], None if flat is None else lambda a, b: flat[a:b])


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON object hook that refuses duplicate keys."""
    out = dict(pairs)
    if len(out) != len(pairs):
        names = [k for k, _ in pairs]
        raise ValueError(f"duplicate key {next(k for k in names if names.count(k) > 1)!r}")
    return out
