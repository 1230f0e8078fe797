"""Divergences of two policies from full logits, all of them in one sweep over the rows.

``pair_statistics`` is the entry; ``numpy_rows`` runs anywhere, ``numba_rows`` is the compiled twin on the
CPU, ``triton_rows`` the one on a GPU, ``hidden`` starts from hidden states instead of logits.  The
definitions are those of ``opdtheory.divergences``; these are their fast twins and are tested against them.
"""

from __future__ import annotations

from opdtheory.audit.kernels.dispatch import STATISTICS, available, pair_statistics

__all__ = ["STATISTICS", "available", "pair_statistics"]
