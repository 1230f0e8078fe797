"""A user's own claims, from a Python file named on the command line."""

from __future__ import annotations

import runpy
from pathlib import Path

from opdtheory.verification.claim import Claim


def load_user_claims(path: Path) -> list[Claim]:
    """Run ``path`` and collect the :class:`Claim` objects at its top level.

    The file is the user's own program and is executed as such.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it fails, or defines no claim, or two claims share an id; the message names the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        names = runpy.run_path(str(path))
    except Exception as problem:
        raise ValueError(f"{path}: {type(problem).__name__}: {problem}") from problem
    claims = [value for value in names.values() if isinstance(value, Claim)]
    unique = {id(c): c for c in claims}
    if not unique:
        raise ValueError(f"{path}: defines no opdtheory.Claim at its top level")
    ids = [c.id for c in unique.values()]
    if len(set(ids)) < len(ids):
        raise ValueError(f"{path}: two claims share an id: {sorted(i for i in ids if ids.count(i) > 1)[0]}")
    return list(unique.values())
