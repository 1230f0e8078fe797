"""Trust Region Masking for Long-Horizon LLM Reinforcement Learning: entries in the order of the slides."""

from __future__ import annotations

from importlib import import_module

SECTIONS = ("weights", "surrogate", "advantage", "bounds", "limits", "tokens", "masks")
"""Modules of this package named trm_*, imported (and so registered) in reading order."""

for _section in SECTIONS:
    import_module(f"opdtheory.claims.trm_{_section}")
