"""Readers: trainers' and engines' dumps → batches, recognised by content."""

from __future__ import annotations

from opdtheory.audit.readers.arrays import batches, in_memory
from opdtheory.audit.readers.files import FORMATS, Unit, expand, read, units

__all__ = ["FORMATS", "Unit", "batches", "expand", "in_memory", "read", "units"]
