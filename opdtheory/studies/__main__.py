"""``python -m opdtheory.studies DIR [NAME …]``: run the studies and write one JSON file each, for the
figures.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from opdtheory.experiments import jsonable, write_json
from opdtheory.studies.experiments import STUDIES


def main(folder: str, *names: str) -> int:
    """Write ``folder/NAME.json`` for the named studies (all by default); 2 on an unknown name."""
    unknown = [n for n in names if n not in STUDIES]
    if unknown:
        print(f"studies: got {', '.join(unknown)}, expected some of {', '.join(STUDIES)}", file=sys.stderr)
        return 2
    for name in names or STUDIES:
        summary, function, settings = STUDIES[name]
        start = time.perf_counter()
        record = {"study": name, "summary": summary, "config": settings, **function(**settings)}
        write_json(Path(folder) / f"{name}.json", jsonable(record))
        print(f"{name}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        print("usage: python -m opdtheory.studies DIR [NAME …]", file=sys.stderr)
        raise SystemExit(2)
    raise SystemExit(main(*sys.argv[1:]))
