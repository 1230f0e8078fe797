"""Real logs: read them, measure them in bounded memory, and say what bounds, masks and estimators say about
them.
"""

from __future__ import annotations

from opdtheory.audit.api import audit_logs
from opdtheory.audit.batch import Batch, InputError
from opdtheory.audit.report import Report
from opdtheory.audit.settings import Settings

__all__ = ["Batch", "InputError", "Report", "Settings", "audit_logs"]
