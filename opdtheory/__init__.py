"""Find out whether a bound about LLM post-training is true, how tight it is, and what it says about your run."""

import importlib
from typing import Any

from opdtheory import advantages, bounds, claims, divergences, masks, rewards, spaces
from opdtheory.calculator import calculate
from opdtheory.tabular import (
    DiscountedMDP,
    Policy,
    PolicyPair,
    SingleState,
    TeacherStudent,
    TokenTree,
    terminal_reward,
)
from opdtheory.verification.claim import Claim, Mutant, Source
from opdtheory.verification.engine import verify
from opdtheory.verification.searching import search

__version__ = "0.1.0"

__all__ = [
    "Claim", "DiscountedMDP", "Mutant", "Policy", "PolicyPair", "SingleState", "Source", "TeacherStudent", "TokenTree",
    "advantages", "audit_logs", "bounds", "calculate", "claims", "confidence", "divergences", "gradients", "harness", "masks",
    "planning", "rewards", "search", "simulate", "spaces", "strategies", "studies", "terminal_reward", "verify",
]  # fmt: skip

_LAZY = frozenset({"confidence", "gradients", "harness", "planning", "simulate", "strategies", "studies"})
"""Submodules that load on first use: they need extras, or libraries that take longer to import than the rest."""


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"opdtheory.{name}")
    if name == "audit_logs":
        return importlib.import_module("opdtheory.audit").audit_logs
    raise AttributeError(f"module 'opdtheory' has no attribute {name!r}")
