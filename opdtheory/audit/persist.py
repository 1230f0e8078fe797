"""States on disk as JSON, so that an interrupted audit can go on; nothing is pickled."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import types
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opdtheory.audit.readers import Unit
from opdtheory.audit.settings import Settings
from opdtheory.audit.state import State


def encode(value: Any) -> Any:
    """Dataclasses, dicts, arrays and numbers → JSON values; infinities and NaN become tagged strings."""
    if is_dataclass(value):
        return {f.name: encode(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, np.ndarray):
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"dtype": value.dtype.str, "shape": list(value.shape), "data": data}
    if isinstance(value, dict):
        return {"pairs": [[encode(k), encode(v)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return [encode(v) for v in value]
    if isinstance(value, float | np.floating):
        return {"float": float(value).hex()}
    if isinstance(value, np.integer):
        return int(value)
    return value


def decode(kind: Any, value: Any) -> Any:
    """The inverse of ``encode`` for a known type."""
    origin = typing.get_origin(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{f.name: decode(hints[f.name], value[f.name]) for f in fields(kind)})
    if kind is np.ndarray:
        raw = np.frombuffer(base64.b64decode(value["data"]), dtype=np.dtype(value["dtype"]))
        return raw.reshape(value["shape"]).copy()
    if origin in (list, tuple):
        inner = typing.get_args(kind)
        if origin is tuple and len(inner) == len(value) and Ellipsis not in inner:
            return tuple(decode(k, v) for k, v in zip(inner, value, strict=True))
        return origin(decode(inner[0], v) for v in value)
    if origin is dict:
        key, inner_kind = typing.get_args(kind)
        return {decode(key, k): decode(inner_kind, v) for k, v in value["pairs"]}
    if origin in (types.UnionType, typing.Union):
        rest = [a for a in typing.get_args(kind) if a is not type(None)]
        return None if value is None else decode(rest[0], value)
    return _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict) and "float" in value:
        return float.fromhex(value["float"])
    if isinstance(value, dict) and "pairs" in value:
        return {_plain(k): _plain(v) for k, v in value["pairs"]}
    return [_plain(v) for v in value] if isinstance(value, list) else value


class Store:
    """Finished units in a folder; a unit counts as finished only for the same file, cut and settings."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.settings = json.dumps(settings.to_dict(), sort_keys=True)

    def path(self, unit: Unit) -> Path:
        info = os.stat(unit.path)
        text = f"{unit}|{info.st_size}|{info.st_mtime_ns}|{self.settings}|1"
        return self.folder / f"{hashlib.blake2b(text.encode(), digest_size=12).hexdigest()}.json"

    def load(self, unit: Unit) -> tuple[State, list[str]] | None:
        """The finished unit, or None if there is none that can be read."""
        path = self.path(unit)
        try:
            data = json.loads(path.read_text())
            return decode(State, data["state"]), list(data["errors"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            path.unlink(missing_ok=True)
            return None

    def save(self, unit: Unit, state: State, errors: list[str]) -> None:
        """Write and rename, so that an interruption leaves no half file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(unit)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        partial.write_text(json.dumps({"errors": errors, "state": encode(state)}))
        partial.replace(path)
