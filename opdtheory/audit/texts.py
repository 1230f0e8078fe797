"""Token texts from a tokenizer's own JSON file, read as data: nothing of it is executed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from opdtheory.audit.batch import InputError

MAX_BYTES = 256 << 20


def _byte_letters() -> dict[str, int]:
    """The printable letters that byte-level tokenizers write for bytes."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(b): b for b in visible}
    hidden = [b for b in range(256) if b not in visible]
    return letters | {chr(256 + i): b for i, b in enumerate(hidden)}


def load(given: str) -> dict[int, str]:
    """Token id → text from ``tokenizer.json`` (or the folder that holds one)."""
    path = Path(given)
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(str(path), "", f"{path.stat().st_size} bytes", f"at most {MAX_BYTES}")
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        model = data["model"]["vocab"]
        pairs = model.items() if isinstance(model, dict) else ((entry[0], i) for i, entry in enumerate(model))
        letters = _byte_letters()
        out = {int(i): _decode(str(text), letters) for text, i in pairs}
        return out | {int(t["id"]): str(t["content"]) for t in data.get("added_tokens", [])}
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        found = getattr(error, "strerror", None) or f"unreadable ({type(error).__name__})"
        raise InputError(str(path), "", found, "a tokenizer.json with model.vocab") from None


def _decode(text: str, letters: dict[str, int]) -> str:
    if text and all(c in letters for c in text):
        return bytes(letters[c] for c in text).decode("utf-8", errors="replace")
    return text.replace("▁", " ")
