"""Optional packages in the tests: where doctests are searched, and how GPU kernels run without a GPU."""

import importlib.util
import os
from pathlib import Path

# Triton decides when a kernel is defined whether it is interpreted; without a GPU it must be
if not Path("/dev/nvidia0").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

_NEEDS = {"triton": ["triton_rows.py"], "numba": ["numba_rows.py", "numba_math.py"]}
collect_ignore = [
    f"opdtheory/audit/kernels/{name}"
    for package, names in _NEEDS.items()
    if importlib.util.find_spec(package) is None
    for name in names
]
# recomputes reference values with a trainer installed in an environment of its own
collect_ignore.append("tests/data/make_verl_reference.py")
