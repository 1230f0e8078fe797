"""Running the audit over many units: one process, many processes or a Ray cluster, with the same result.

Units are read independently and their states merged in the order of the units, so that neither the number of
processes nor the engine changes a count, and sums agree to the last digits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import joblib

from opdtheory.audit.batch import Batch, InputError
from opdtheory.audit.persist import Store
from opdtheory.audit.readers import Unit, read
from opdtheory.audit.settings import Settings
from opdtheory.audit.state import State
from opdtheory.audit.states import Groups, Top, Vocabulary
from opdtheory.workers import workers

MAX_ERRORS = 20


@dataclass
class Outcome:
    """The merged state of all data, one per training step, and the errors in reading order."""

    total: State = field(default_factory=State)
    steps: dict[int, State] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)

    def take(self, unit: Unit, state: State, errors: list[str]) -> None:
        if unit.step is not None:
            # the run-level view needs no tokens, only statistics
            light = replace(
                state, answers=Groups(), vocabulary=Vocabulary(), texts={}, worst=Top(0), heat=Top(0)
            )
            self.steps.setdefault(unit.step, State(worst=Top(0), heat=Top(0))).merge(light)
        self.total.merge(state)
        self.errors += errors
        if unit.path not in self.sources:
            self.sources.append(unit.path)


def process(unit: Unit, settings: Settings, store: Store | None) -> tuple[State, list[str]]:
    """Read one unit; what was read before a fault is kept."""
    if store is not None:
        done = store.load(unit)
        if done is not None:
            return done
    state, extra = State(), 0
    errors: list[str] = []

    def report(error: InputError) -> None:
        nonlocal extra
        if len(errors) < MAX_ERRORS:
            errors.append(str(error))
        else:
            extra += 1

    try:
        for batch in read(unit, settings.group, report):
            state.update(batch, settings)
    except InputError as error:
        report(error)
    except OSError as error:
        report(InputError(unit.path, "", f"{error.strerror or error}", "a readable file"))
    except (ValueError, MemoryError) as error:
        report(InputError(unit.path, "", str(error) or type(error).__name__, "consistent data"))
    if extra:
        errors.append(f"{unit.path}: {extra} further faulty records")
    if store is not None:
        store.save(unit, state, errors)
    return state, errors


def run(
    units: list[Unit], settings: Settings, *, jobs: int = 1, engine: str = "local", store: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Outcome:  # fmt: skip
    """Audit units in order; ``store`` is a folder for finished units, which an interrupted run goes on
    from.
    """
    if not isinstance(jobs, int) or jobs == 0 or jobs < -1:
        raise ValueError(f"jobs: got {jobs!r}, expected a positive integer, or -1 for all cores")
    keep = None if store is None else Store(store, settings)
    outcome = Outcome()
    with workers(engine, jobs), warnings.catch_warnings():
        # an interruption cancels running tasks, which is what was asked for
        warnings.filterwarnings("ignore", message=".*tasks which were still being processed")
        for n, (unit, (state, errors)) in enumerate(
            zip(units, _results(units, settings, jobs, engine, keep), strict=True)
        ):
            outcome.take(unit, state, errors)
            if progress is not None:
                progress(n + 1, len(units))
    return outcome


def _results(
    units: list[Unit], settings: Settings, jobs: int, engine: str, store: Store | None
) -> Iterable[tuple[State, list[str]]]:
    if jobs == 1 and engine == "local":
        return (process(unit, settings, store) for unit in units)
    calls = (joblib.delayed(process)(unit, settings, store) for unit in units)
    if engine == "ray":
        # the Ray backend cannot return results one by one
        return joblib.Parallel(n_jobs=jobs)(calls)
    return joblib.Parallel(n_jobs=jobs, return_as="generator")(calls)


def run_batches(batches: Iterator[Batch], settings: Settings) -> Outcome:
    """Audit batches that are already in memory."""
    outcome = Outcome()
    for batch in batches:
        state = State().update(batch, settings)
        outcome.take(Unit(batch.source, "memory", step=batch.step), state, [])
    return outcome
