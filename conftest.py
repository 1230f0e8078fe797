"""Modules that need an optional package are searched for doctests only where it is installed."""

import importlib.util

_NEEDS = {"triton": ["triton_rows.py"], "numba": ["numba_rows.py", "numba_math.py"]}
collect_ignore = [
    f"opdtheory/audit/kernels/{name}"
    for package, names in _NEEDS.items()
    if importlib.util.find_spec(package) is None
    for name in names
]
