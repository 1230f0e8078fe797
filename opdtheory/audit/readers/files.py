"""Finding out what a file is from its first bytes, and reading it as batches.

A file is cut into units (stretches of a JSONL file, otherwise the whole file) that can be read
independently and in any order.  Nothing in a file is ever executed: pickles are refused, ``.pt`` goes
through torch's restricted loader, npz through a reader of plain arrays.
"""

from __future__ import annotations

import json
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opdtheory.audit.batch import Batch, InputError, Sequence_, assemble
from opdtheory.audit.readers import engines
from opdtheory.audit.readers.arrays import Column, batches, in_memory, row_count
from opdtheory.audit.readers.containers import npz_columns, safetensors_columns, unique_keys
from opdtheory.audit.readers.records import sequence

FORMATS = ("jsonl", "json", "npz", "safetensors", "parquet", "pt")
UNIT_BYTES = 64 << 20
MAX_LINE = 256 << 20
MAX_JSON = 1 << 30
BATCH_TOKENS = 1 << 17
SUFFIXES = {".jsonl", ".json", ".npz", ".safetensors", ".parquet", ".pt", ".pth", ".ndjson"}
Report = Callable[[InputError], None]


@dataclass(frozen=True)
class Unit:
    """A part of one file that is read on its own: bytes ``start:stop`` of a JSONL file, sequences ``start:stop``
    of a safetensors file, or all of another kind.
    """

    path: str
    format: str
    start: int = 0
    stop: int = -1
    step: int | None = None


def expand(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Files named by the paths; folders give the known files inside them, in natural order."""
    out: list[Path] = []
    for given in paths:
        path = Path(given)
        if path.is_dir():
            inside = [p for p in path.rglob("*") if p.is_file() and p.suffix in SUFFIXES]
            if not inside:
                raise InputError(
                    str(path),
                    "",
                    "a folder without data files",
                    f"files ending in {', '.join(sorted(SUFFIXES))}",
                )
            out += sorted(inside, key=_natural)
        elif path.is_file():
            out.append(path)
        else:
            raise InputError(str(path), "", "no such file", "a file or a folder of rollout logs")
    return out


def _natural(path: Path) -> list[Any]:
    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", str(path))]


def step_of(path: Path) -> int | None:
    """Training step named by a path: ``step_12/``, ``train_data_step12.jsonl``, or slime's
    ``rollout_data/12.pt``.
    """
    found = re.findall(r"step[_-]?(\d+)", str(path)) or re.findall(
        r"(?:rollout|train)_data[/\\](\d+)\.pt$", str(path)
    )
    return int(found[-1]) if found else None


def detect(path: Path) -> str:
    """The container format, from the content."""
    with path.open("rb") as stream:
        head = stream.read(4096)
    if head.startswith(b"PK\x03\x04") or head.startswith(b"PK\x05\x06"):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, OSError) as error:
            raise InputError(
                str(path), "", f"a damaged or truncated zip ({error})", "an npz or .pt file"
            ) from None
        return "pt" if any(n.endswith("data.pkl") for n in names) else "npz"
    if head.startswith(b"PAR1"):
        return "parquet"
    # the length of a header of less than 2^56 bytes has a zero byte; text has none
    if head[8:9] == b"{" and b"\0" in head[:8]:
        return "safetensors"
    if head[:1] == b"\x80":
        raise InputError(
            str(path), "byte 0", "a Python pickle", f"one of {', '.join(FORMATS)}; pickles are never loaded"
        )
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"["):
        return "json"
    if text.startswith(b"{"):
        return "jsonl" if _first_line_is_object(path) else "json"
    raise InputError(str(path), "byte 0", f"{head[:12]!r}", f"one of {', '.join(FORMATS)}")


def _first_line_is_object(path: Path) -> bool:
    with path.open("rb") as stream:
        line = stream.readline(MAX_LINE)
        rest = stream.read(1)
    return line.rstrip().endswith(b"}") or (path.suffix != ".json" and (not rest or line.strip() != b"{"))


def units(path: Path, fmt: str | None = None) -> list[Unit]:
    """The units of one file."""
    if fmt is not None and fmt not in FORMATS:
        raise InputError(str(path), "--format", repr(fmt), f"one of {', '.join(FORMATS)}")
    size = path.stat().st_size
    if size == 0:
        raise InputError(str(path), "", "an empty file", "rollout logs")
    kind = fmt or detect(path)
    step = step_of(path)
    if kind == "safetensors" and size > UNIT_BYTES:
        rows = row_count(safetensors_columns(path), str(path))
        each = max(1, rows * UNIT_BYTES // size)
        return [Unit(str(path), kind, a, min(a + each, rows), step) for a in range(0, rows, each)]
    if kind != "jsonl":
        return [Unit(str(path), kind, 0, -1, step)]
    return [Unit(str(path), kind, a, min(a + UNIT_BYTES, size), step) for a in range(0, size, UNIT_BYTES)]


def read(unit: Unit, group: str | None, report: Report) -> Iterator[Batch]:
    """Batches of one unit.  Faulty records go to ``report`` and skipped; a faulty container raises."""
    path = Path(unit.path)
    if unit.format == "jsonl":
        yield from _collect(_json_lines(unit, group, report), unit, report)
    elif unit.format == "json":
        yield from _collect(_json_records(path, group, report), unit, report)
    elif unit.format == "npz":
        yield from batches(npz_columns(path), unit.path, group, unit.step)
    elif unit.format == "safetensors":
        yield from batches(safetensors_columns(path), unit.path, group, unit.step, unit.start, unit.stop)
    elif unit.format == "parquet":
        yield from _collect(_parquet(path, group, report), unit, report)
    else:
        yield from _torch_file(path, unit, group, report)


def _collect(sequences: Iterator[Sequence_], unit: Unit, report: Report) -> Iterator[Batch]:
    """Batches of about ``BATCH_TOKENS`` tokens, cut between prompts where that needs no more than twice as many."""
    pending: list[Sequence_] = []
    tokens = longest = 0
    for s in sequences:
        # masks pad sequences to the longest one: that rectangle is bounded too
        size = max(tokens, longest * len(pending) // 4)
        same = bool(pending) and s.group is not None and s.group == pending[-1].group
        if size >= (2 * BATCH_TOKENS if same else BATCH_TOKENS):
            yield assemble(unit.path, pending, unit.step)
            pending, tokens, longest = [], 0, 0
        pending.append(s)
        tokens, longest = tokens + s.length, max(longest, s.length)
    if pending:
        yield assemble(unit.path, pending, unit.step)


def record_sequences(record: Any, source: str, where: str, group: str | None) -> Iterator[Sequence_]:
    """The sequences of one decoded record of any known kind."""
    if not isinstance(record, dict):
        raise InputError(source, where, type(record).__name__, "a JSON object per sequence")
    kind = engines.kind_of(record)
    if kind is not None:
        yield from engines.sequences(record, kind, source, where, group)
    else:
        yield sequence(record, source, where, group)


def _guarded(record: Any, source: str, where: str, group: str | None, report: Report) -> Iterator[Sequence_]:
    try:
        yield from record_sequences(record, source, where, group)
    except InputError as error:
        report(error)


def _parse(text: bytes, source: str, where: str) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"), object_pairs_hook=unique_keys)
    except UnicodeDecodeError as error:
        raise InputError(source, where, f"byte {error.start} is not UTF-8", "UTF-8 JSON") from None
    except json.JSONDecodeError as error:
        raise InputError(
            source, f"{where}, column {error.colno}", f"invalid JSON ({error.msg})", "a complete JSON value"
        ) from None
    except RecursionError:
        raise InputError(source, where, "JSON nested too deeply", "flat lists of numbers") from None
    except ValueError as error:
        raise InputError(source, where, str(error)[:100], "valid JSON without duplicate keys") from None


def _json_lines(unit: Unit, group: str | None, report: Report) -> Iterator[Sequence_]:
    with open(unit.path, "rb") as stream:
        stream.seek(unit.start)
        if unit.start:
            stream.seek(unit.start - 1)
            stream.readline(MAX_LINE)  # the line that began before this unit belongs to the previous one
        number = 0
        while (at := stream.tell()) < unit.stop:
            line = stream.readline(MAX_LINE)
            number += 1
            where = f"line {number}" if not unit.start else f"line at byte {at}"
            if not line.strip():
                continue
            try:
                if len(line) >= MAX_LINE:
                    raise InputError(unit.path, where, f"more than {MAX_LINE} bytes", "one sequence per line")
                record = _parse(line, unit.path, where)
            except InputError as error:
                report(error)
                continue
            yield from _guarded(record, unit.path, where, group, report)


def _json_records(path: Path, group: str | None, report: Report) -> Iterator[Sequence_]:
    if path.stat().st_size > MAX_JSON:
        raise InputError(
            str(path), "", f"a JSON document of {path.stat().st_size} bytes", "JSONL for more than 1 GB"
        )
    document = _parse(path.read_bytes(), str(path), "document")
    records = document if isinstance(document, list) else [document]
    if len(records) == 1 and isinstance(records[0], list):
        records = records[0]
    for i, record in enumerate(records):
        yield from _guarded(record, str(path), f"record {i}", group, report)


def _parquet(path: Path, group: str | None, report: Report) -> Iterator[Sequence_]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(
            str(path), "", "a parquet file, but pyarrow is not installed", "pip install 'opdtheory[formats]'"
        ) from None
    try:
        row = 0
        with pq.ParquetFile(path) as file:
            for chunk in file.iter_batches(batch_size=64):
                names = chunk.schema.names
                if len(set(names)) != len(names):
                    raise InputError(str(path), "schema", "duplicate column names", "distinct columns")
                for i in range(chunk.num_rows):
                    record = {n: _arrow_value(chunk.column(n)[i]) for n in names}
                    yield from _guarded(record, str(path), f"row {row}", group, report)
                    row += 1
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            str(path), "", f"unreadable parquet ({str(error)[:80]})", "an intact parquet file"
        ) from None


def _arrow_value(scalar: Any) -> Any:
    """A list of numbers without nulls as a numpy array, anything else as plain Python."""
    values = getattr(scalar, "values", None)
    # of a struct, ``values`` is a method
    if values is not None and not callable(values) and values.null_count == 0 and values.type.num_fields == 0:
        try:
            return values.to_numpy(zero_copy_only=False)
        except (ValueError, NotImplementedError):
            return scalar.as_py()
    return scalar.as_py()


def _torch_file(path: Path, unit: Unit, group: str | None, report: Report) -> Iterator[Batch]:
    try:
        import torch
    except ImportError:
        raise InputError(
            str(path), "", "a .pt file, but torch is not installed", "pip install 'opdtheory[llm]'"
        ) from None
    _refuse_compressed(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds; every one of them means the file is not plain data
        text = str(error).split(". ")[0].replace("\n", " ")[:120]
        raise InputError(
            str(path), "", f"not loadable as plain tensors ({text})", "tensors, numbers, lists and dicts only"
        ) from None
    yield from torch_batches(data, unit, group, report)


def _refuse_compressed(path: Path) -> None:
    """torch.save compresses nothing; a compressed member could unpack to any size."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                found = f"{info.file_size} bytes compressed to {info.compress_size}"
                raise InputError(
                    str(path), f"member {info.filename!r}", found, "members stored plainly by torch.save"
                )


def torch_batches(data: Any, unit: Unit, group: str | None, report: Report) -> Iterator[Batch]:
    """Batches of a loaded ``.pt`` object: a dict of (B, T) tensors, of per-sequence lists (slime), or of
    samples.
    """
    if isinstance(data, dict) and isinstance(data.get("samples"), list):
        data = data["samples"]
    if isinstance(data, list):
        records: Iterable[Any] = data
    elif isinstance(data, dict) and _is_table(data):
        yield from batches(_tensor_columns(data), unit.path, group, unit.step)
        return
    elif isinstance(data, dict):
        records = _rows_of(data, unit.path)
    else:
        raise InputError(unit.path, "", type(data).__name__, "a dict or a list of samples")

    def sequences() -> Iterator[Sequence_]:
        for i, record in enumerate(records):
            yield from _guarded(record, unit.path, f"sample {i}", group, report)

    yield from _collect(sequences(), unit, report)


def _is_table(data: dict[str, Any]) -> bool:
    return any(getattr(v, "ndim", 0) >= 2 for v in data.values())


def _tensor_columns(data: dict[str, Any]) -> dict[str, Column]:
    return in_memory({k: v for k, v in data.items() if getattr(v, "ndim", 0) >= 1})


def _rows_of(data: dict[str, Any], source: str) -> Iterator[dict[str, Any]]:
    """A dict of equally long lists → one dict per sequence."""
    lists = {k: v for k, v in data.items() if isinstance(v, list | np.ndarray) or getattr(v, "ndim", 0) == 1}
    sizes = {k: len(v) for k, v in lists.items()}
    if not sizes:
        raise InputError(
            source, "", f"keys {sorted(map(str, data))[:8]}", "tensors or lists, one entry per sequence"
        )
    count = sizes.get("tokens", sizes.get("rollout_log_probs", max(sizes.values())))
    wrong = {
        k: n
        for k, n in sizes.items()
        if n != count
        and k
        in (
            "tokens",
            "loss_masks",
            "rollout_log_probs",
            "log_probs",
            "teacher_log_probs",
            "response_lengths",
            "rewards",
        )
    }
    if wrong:
        name = next(iter(wrong))
        raise InputError(source, f"key {name!r}", f"{wrong[name]} entries", f"{count} as in the others")
    used = {k: v for k, v in lists.items() if sizes[k] == count}
    for i in range(count):
        yield {k: v[i].item() if getattr(v[i], "ndim", None) == 0 else v[i] for k, v in used.items()}
