"""Parameter sweeps: one function over a grid of settings, finished cells on disk, one tidy table at the end.

Every cell is written as soon as it is done, atomically and under a name made from its settings and the
function's, so that an interrupted sweep goes on where it stopped and a larger grid reuses the smaller one's
cells.  Cells run in local processes through joblib, or on a Ray cluster through the same call.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed

from opdtheory.experiments import atomic, jsonable, write_json
from opdtheory.workers import workers

__all__ = ["grid", "read_table", "sweep", "write_table"]

Cell = Mapping[str, Any]


def grid(**axes: Sequence[Any]) -> list[dict[str, Any]]:
    """Every combination of the axes' values, the last axis fastest.

    >>> grid(alpha=[0.1, 0.5], seed=[0, 1])[1]
    {'alpha': 0.1, 'seed': 1}
    """
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def sweep(
    function: Callable[[Cell], Mapping[str, Any]],
    cells: Iterable[Cell],
    out: str | Path,
    *,
    jobs: int = 1,
    engine: str = "local",
    resume: bool = True,
    table: str | None = "table.csv",
) -> list[dict[str, Any]]:
    """Rows {settings, results} of ``function`` on every cell, in the order of the cells, and their table.

    ``function`` is importable (defined at the top level of a module) and maps settings to named results,
    both plain JSON values.  ``engine`` is ``local`` or ``ray``.  Cells found in ``out/cells`` are not
    computed again unless ``resume`` is False.  ``table`` ends in ``.csv`` or ``.parquet`` (needs pyarrow)
    and lies in ``out``; values that are lists stay in the rows and out of the table.

    Raises ValueError for another engine or table format, before anything runs, and for a result that has a
    setting's name.
    """
    if table is not None and Path(table).suffix not in (".csv", ".parquet"):
        raise ValueError(f"table: got {table!r}, expected a name ending in .csv or .parquet")
    folder, wanted = Path(out) / "cells", [dict(cell) for cell in cells]
    paths = [folder / f"{_identity(function, cell)}.json" for cell in wanted]
    missing = {p: c for p, c in zip(paths, wanted, strict=True) if not (resume and p.exists())}
    if missing:
        with workers(engine, jobs):
            Parallel(n_jobs=jobs)(delayed(_compute)(function, cell, path) for path, cell in missing.items())
    rows = [json.loads(path.read_text()) for path in paths]
    if table is not None:
        write_table(rows, Path(out) / table)
    return rows


def _identity(function: Callable[..., Any], cell: Cell) -> str:
    name = f"{function.__module__}.{function.__qualname__}"
    text = json.dumps([name, jsonable(cell)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _compute(function: Callable[[Cell], Mapping[str, Any]], cell: Cell, path: Path) -> None:
    result = dict(function(cell))
    clash = sorted(set(result) & set(cell))
    if clash:
        raise ValueError(f"result {clash[0]!r} of {function.__qualname__}: is the name of a setting too")
    write_json(path, jsonable({**cell, **result}))


def write_table(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One line per row, one column per key that holds single values; CSV or parquet by the ending."""
    flat = [{k: v for k, v in row.items() if not isinstance(v, list | dict)} for row in rows]
    columns = list(dict.fromkeys(key for row in flat for key in row))
    if path.suffix == ".parquet":
        try:
            import pyarrow
            import pyarrow.parquet as parquet
        except ImportError:
            raise ValueError(f"{path.name}: parquet needs pyarrow; install it or use .csv") from None
        with atomic(path) as partial:
            columnar = {c: [row.get(c) for row in flat] for c in columns}
            parquet.write_table(pyarrow.table(columnar), partial)
        return
    with atomic(path) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)


def read_table(path: Path) -> list[dict[str, Any]]:
    """Rows of a table written by ``write_table``; values of a CSV file are strings."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet

        return parquet.read_table(path).to_pylist()
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
