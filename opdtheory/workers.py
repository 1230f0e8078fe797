"""Where parallel work runs: in local processes or on Ray, behind the same joblib calls."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from joblib import parallel_config

__all__ = ["ENGINES", "workers"]

ENGINES = ("local", "ray")


@contextmanager
def workers(engine: str, jobs: int) -> Iterator[None]:
    """Run the joblib calls inside locally, or on Ray: a cluster already connected, else ``jobs`` local workers
    (-1: one a core) that are stopped at the end.

    Raises:
        ValueError: for another engine, or if Ray was asked for and is not installed.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine: got {engine!r}, expected one of {', '.join(ENGINES)}")
    if engine == "local":
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError:
        raise ValueError(
            "engine: got 'ray', but Ray is not installed; expected pip install 'opdtheory[ray]'"
        ) from None
    ours = not ray.is_initialized()
    if ours:
        ray.init(
            num_cpus=jobs if jobs > 0 else None,
            include_dashboard=False,
            object_store_memory=200 << 20,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    register_ray()
    try:
        with parallel_config(backend="ray"):
            yield
    finally:
        if ours:
            ray.shutdown()
