"""The registry behind ``opdtheory run``: named, configurable, resumable experiments that leave one JSON
record each.

An experiment is a function ``f(run) -> dict`` decorated with :func:`experiment`. The :class:`Run` it receives
holds the checked configuration, a progress display, and :meth:`Run.part`, which computes a piece of the
result once: finished parts lie on disk, written atomically, and ``resume=True`` takes them from there. A part
is only reused when the configuration is the same; anything else is refused, so that a record never mixes two
settings.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from opdtheory.files import atomic as atomic

T = TypeVar("T")

SCHEMA_VERSION = 1
PROVIDERS = (
    "opdtheory.gradients.experiment",
    "opdtheory.harness.experiments",
    "opdtheory.simulate.experiments",
    "opdtheory.studies.experiments",
)
"""Modules that register experiments when imported; they import their heavy libraries inside the
experiments.
"""

_REGISTRY: dict[str, Experiment] = {}


@dataclass(frozen=True)
class Experiment:
    """A named experiment: what it does, what it needs installed, its default configuration, the folders it
    keeps larger files in, and a check of the configuration that needs no work.
    """

    name: str
    summary: str
    needs: tuple[str, ...]
    defaults: Mapping[str, Any]
    function: Callable[[Run], dict[str, Any]]
    folders: tuple[str, ...] = ()
    check: Callable[[Mapping[str, Any]], None] | None = None


@dataclass
class Run:
    """One execution of an experiment: configuration, output folder, progress and finished parts.

    Nothing is written before the first part or folder is asked for, so that a refusal leaves no trace.
    """

    name: str
    config: Mapping[str, Any]
    out: Path
    resume: bool = False
    quiet: bool = True
    folders: tuple[str, ...] = ()
    reused: list[str] = field(default_factory=list)
    begun: bool = False

    def begin(self) -> None:
        """Say on disk what runs here; what another run left is removed, unless this one resumes it."""
        if self.begun:
            return
        self.begun = True
        for name in ("parts", *self.folders):
            if not self.resume:
                shutil.rmtree(self.out / name, ignore_errors=True)
            for unfinished in (self.out / name).glob(".*"):  # of a run that was killed while writing
                unfinished.unlink()
        write_json(self.out / "config.json", self.identity)

    @property
    def identity(self) -> dict[str, Any]:
        """What a run must have in common with the parts that it reuses."""
        return dict(jsonable({"experiment": self.name, "config": self.config}))

    def part(self, name: str, compute: Callable[[], T]) -> T:
        """The JSON value of ``compute()``, stored under ``out/parts/name.json`` and reused when resuming."""
        self.begin()
        path = self.out / "parts" / f"{name}.json"
        if self.resume and path.exists():
            self.reused.append(name)
            return read_json(path)
        value = jsonable(compute())
        write_json(path, value)
        return value

    def folder(self, name: str) -> Path:
        """One of the experiment's folders below ``out`` for larger files, such as training checkpoints."""
        if name not in self.folders:
            raise ValueError(f"folder {name!r}: {self.name} declares {', '.join(self.folders) or 'none'}")
        self.begin()
        path = self.out / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def track(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Iterate with a progress bar on stderr, or silently when quiet."""
        if self.quiet:
            yield from items
            return
        from rich.console import Console
        from rich.progress import track

        yield from track(items, description, total=total, console=Console(stderr=True))

    def say(self, text: str) -> None:
        """One line on stderr, unless quiet."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)


def experiment(
    name: str,
    *,
    summary: str,
    needs: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
    folders: Sequence[str] = (),
    check: Callable[[Mapping[str, Any]], None] | None = None,
) -> Callable[[Callable[[Run], dict[str, Any]]], Callable[[Run], dict[str, Any]]]:
    """Register ``f(run) -> dict`` under ``name``; ``needs`` lists importable modules, ``defaults`` every
    setting it reads, ``folders`` those it asks the run for; ``check`` raises ValueError for settings that
    cannot work.

    Raises ValueError when the name is taken by another function.
    """

    def register(function: Callable[[Run], dict[str, Any]]) -> Callable[[Run], dict[str, Any]]:
        known = _REGISTRY.get(name)
        if known is not None and known.function.__qualname__ != function.__qualname__:
            raise ValueError(f"experiment {name!r} is already registered by {known.function.__qualname__}")
        _REGISTRY[name] = Experiment(
            name, summary, tuple(needs), dict(defaults or {}), function, tuple(folders), check
        )
        return function

    return register


def load_all() -> dict[str, Experiment]:
    """Every registered experiment by name, the modules in ``PROVIDERS`` imported first."""
    for module in PROVIDERS:
        if importlib.util.find_spec(module.rpartition(".")[0]) and importlib.util.find_spec(module):
            importlib.import_module(module)
    return dict(sorted(_REGISTRY.items()))


def get(name: str) -> Experiment:
    """The experiment called ``name``; ValueError naming the known ones otherwise."""
    known = load_all()
    if name not in known:
        raise ValueError(f"no experiment {name!r}; known: {', '.join(known) or 'none'}")
    return known[name]


def missing(exp: Experiment) -> list[str]:
    """The modules an experiment needs that are not installed here."""
    return [module for module in exp.needs if importlib.util.find_spec(module) is None]


def merged(
    defaults: Mapping[str, Any], given: Mapping[str, Any] | None, where: str = "config"
) -> dict[str, Any]:
    """``defaults`` overridden by ``given``, nested mappings key by key.

    Raises ValueError for a key the defaults do not have, and for a value of another kind than its default:
    number, text, truth value, list or mapping. A default of None accepts anything, one that is an empty
    mapping any keys, and ``FLEXIBLE`` names the settings that may be of several kinds.

    >>> merged({"seed": 0, "model": {"dtype": "float32"}}, {"model": {"dtype": "bfloat16"}})
    {'seed': 0, 'model': {'dtype': 'bfloat16'}}
    """
    result = dict(defaults)
    for key, value in (given or {}).items():
        if key not in defaults:
            raise ValueError(f"{where}: unknown key {key!r}; expected one of {', '.join(sorted(defaults))}")
        default = defaults[key]
        if isinstance(default, Mapping):
            if not isinstance(value, Mapping):
                raise ValueError(f"{where}.{key}: got {value!r}, expected a mapping")
            result[key] = merged(default, value, f"{where}.{key}") if default else dict(value)
        else:
            kinds = FLEXIBLE.get(key, (_kind(default),))
            if default is not None and _kind(value) not in kinds:
                raise ValueError(f"{where}.{key}: got {value!r}, expected {' or '.join(kinds)}")
            result[key] = value
    return result


FLEXIBLE = {"prompts": ("a number", "a list"), "drop_layers": ("a list", "a text")}
"""Settings that may be of more than one kind."""


def _kind(value: Any) -> str:
    kinds: dict[str, Any] = {"true or false": bool, "a number": int | float, "a text": str, "a mapping": Mapping}
    return next((name for name, kind in kinds.items() if isinstance(value, kind)), "a list")


def run_experiment(
    name: str,
    config: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    quiet: bool = True,
) -> dict[str, Any]:
    """Run an experiment and return its record, also written to ``out/record.json``.

    ``out`` defaults to ``runs/NAME``. Raises ValueError for an unknown experiment or key, for missing
    packages, and when ``resume`` finds parts made with another configuration.
    """
    exp = get(name)
    absent = missing(exp)
    if absent:
        raise ValueError(f"experiment {name!r} needs {', '.join(absent)}, not installed here")
    settings = merged(exp.defaults, config)
    if exp.check is not None:
        exp.check(settings)
    folder = Path(out) if out is not None else Path("runs") / name
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: a file; expected a folder for the results")
    stamp = folder / "config.json"
    run = Run(name, settings, folder, resume and stamp.exists(), quiet, exp.folders)
    if run.resume:
        found = read_json(stamp)
        if found != run.identity:
            raise ValueError(
                f"{stamp}: made with {_difference(found, run.identity)}; expected the same configuration, "
                "or a run without --resume"
            )
    spent, clock = (_spent(folder) if run.resume else 0.0), time.perf_counter()
    seconds = spent
    try:
        result = exp.function(run)
    finally:
        seconds = round(spent + time.perf_counter() - clock, 2)
        if run.begun:
            write_json(folder / "elapsed.json", {"seconds": seconds})
    run.begin()
    record = jsonable(
        {
            "schema_version": SCHEMA_VERSION,
            "experiment": name,
            "summary": exp.summary,
            "config": settings,
            "command": _command(),
            "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "versions": _versions(exp.needs),
            "seconds": seconds,
            "reused_parts": run.reused,
            **result,
        }
    )
    write_json(folder / "record.json", record)
    return record


def read_json(path: Path) -> Any:
    """The content of a JSON file; ValueError naming the file when it is damaged."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: {error}; expected JSON that this package wrote") from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    with atomic(path) as partial:
        partial.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def jsonable(value: Any) -> Any:
    """Plain JSON types: arrays to lists, infinities to the strings "inf" and "-inf"; NaN is a ValueError."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if hasattr(value, "tolist"):
        return jsonable(value.tolist())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        if math.isnan(value):
            raise ValueError("a result is NaN; records hold numbers, inf or null only")
        return value if math.isfinite(value) else ("inf" if value > 0 else "-inf")
    if value is None or isinstance(value, str | bool | int):
        return value
    raise ValueError(f"cannot record a value of type {type(value).__name__}")


def _spent(folder: Path) -> float:
    """Seconds that earlier, interrupted runs in this folder took."""
    path = folder / "elapsed.json"
    return float(read_json(path)["seconds"]) if path.exists() else 0.0


def _versions(needs: Sequence[str]) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("numpy", *needs):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _command() -> str:
    called = Path(sys.argv[0])
    # python -m opdtheory is the same command
    name = called.parent.name if called.name == "__main__.py" else called.name
    return shlex.join([name, *sys.argv[1:]])


def _difference(old: Any, new: Any) -> str:
    old_config, new_config = old.get("config", {}), new.get("config", {})
    keys = [k for k in sorted({*old_config, *new_config}) if old_config.get(k) != new_config.get(k)]
    return (
        ", ".join(f"{k}={old_config.get(k)!r} (now {new_config.get(k)!r})" for k in keys)
        or "another experiment"
    )
