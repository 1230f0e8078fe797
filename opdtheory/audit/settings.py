"""What the user tells the audit: sampler settings, reward range, thresholds, which statistics to take."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

COMPAT = ("verl", "verl-sequence-is", "nemo-rl", "slime", "ms-swift")


@dataclass(frozen=True)
class Settings:
    """Options of an audit; every value is checked on construction.

    ``temperature`` divides all full logits (trainers score at the sampler's temperature); ``top_p`` < 1
    truncates the rollout policy's full logits, as the sampler did.  ``alpha`` is TOP-D's mixing weight,
    ``topk`` the size of the top-k partition taken from full logits.
    """

    reward_range: tuple[float, float] | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    group: str | None = None
    confidence: float = 0.95
    compat: tuple[str, ...] = ()
    redact: bool = False
    alpha: float = 0.1
    topk: int = 20
    ratio_cap: float = 2.0
    k3_mask: float = 0.05
    is_threshold: float = 2.0
    token_texts: str | None = None

    def __post_init__(self) -> None:
        if self.reward_range is not None:
            low, high = self.reward_range
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"reward range: got {self.reward_range!r}, expected finite LO < HI")
        _check("temperature", self.temperature, 0 < self.temperature < math.inf, "a positive number")
        _check("top-p", self.top_p, 0 < self.top_p <= 1, "a number in (0, 1]")
        _check("confidence", self.confidence, 0 < self.confidence < 1, "a number strictly between 0 and 1")
        _check("alpha", self.alpha, 0 < self.alpha <= 1, "a number in (0, 1]")
        _check("topk", self.topk, isinstance(self.topk, int) and self.topk >= 1, "a positive integer")
        _check("ratio cap", self.ratio_cap, 1 < self.ratio_cap < math.inf, "a finite number above 1")
        _check("k3 mask", self.k3_mask, self.k3_mask > 0, "a positive number")
        _check("is threshold", self.is_threshold, self.is_threshold > 0, "a positive number")
        for name in self.compat:
            if name not in COMPAT:
                raise ValueError(f"compat: got {name!r}, expected one of {', '.join(COMPAT)}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _check(name: str, value: object, good: bool, expected: str) -> None:
    if not good:
        raise ValueError(f"{name}: got {value!r}, expected {expected}")
