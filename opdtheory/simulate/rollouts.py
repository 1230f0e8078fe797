"""The law that responses are drawn from: the student as a second, imperfect engine sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from opdtheory.simulate.students import Student
from opdtheory.tabular import Policy
from opdtheory.tabular.policy import softmax

__all__ = ["Rollout", "round_significand"]


def round_significand(x: np.ndarray, bits: int) -> np.ndarray:
    """Numbers rounded to ``bits`` significant binary digits (bfloat16 has 8, float16 11).

    >>> round_significand(np.array([1.0, 1.3, -100.3]), 3).tolist()
    [1.0, 1.25, -96.0]
    """
    significand, exponent = np.frexp(x)
    return np.ldexp(np.round(np.ldexp(significand, bits)), exponent - bits)


@dataclass(frozen=True)
class Rollout:
    """How the rollout policy differs from the policy being trained; the defaults leave no difference.

    ``stale`` steps old parameters; logits rounded to ``bits`` significant digits; in each context, with
    probability ``flip`` and afresh at every step, another expert answers: normal noise of standard deviation
    ``flip_scale`` on its logits (*Trust Region Masking for Long-Horizon LLM Reinforcement Learning*, Part 1:
    routing flips); then ``temperature`` and ``top_p`` as a sampler applies them.
    """

    bits: int | None = None
    temperature: float = 1.0
    top_p: float | None = None
    stale: int = 0
    flip: float = 0.0
    flip_scale: float = 2.0

    def __post_init__(self) -> None:
        if self.bits is not None and self.bits < 1:
            raise ValueError(f"bits: got {self.bits!r}, expected a positive number of digits or None")
        if not self.temperature > 0:
            raise ValueError(f"temperature: got {self.temperature!r}, expected a number > 0")
        if self.stale < 0:
            raise ValueError(f"stale: got {self.stale!r}, expected a number of steps >= 0")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip: got {self.flip!r}, expected a probability")

    @property
    def faithful(self) -> bool:
        """True if the rollout policy is the policy being trained."""
        return self == Rollout(flip_scale=self.flip_scale)

    def policy(
        self, student: Student, history: Sequence[np.ndarray], current: Policy, rng: np.random.Generator
    ) -> Policy:
        """The rollout policy, given the parameters so far (newest last) and the policy at the newest."""
        if self.faithful:
            return current
        old = history[max(0, len(history) - 1 - self.stale)]
        z = student.logits(old)
        if self.bits is not None:
            z = round_significand(z, self.bits)
        if self.flip > 0:
            flipped = rng.random(z.shape[1:]) < self.flip
            z = z + flipped * rng.normal(scale=self.flip_scale, size=z.shape)
        policy = Policy(student.tree, softmax(z / self.temperature), current.batch_shape)
        return policy if self.top_p is None else policy.truncated(top_p=self.top_p)

    @property
    def memory(self) -> int:
        """Number of past parameter vectors it looks at."""
        return self.stale + 1
