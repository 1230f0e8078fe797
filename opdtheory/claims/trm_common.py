"""Instance spaces and small helpers shared by the entries on Trust Region Masking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import flint
import numpy as np

from opdtheory.elementary import exact, to_ball
from opdtheory.spaces import WITH_EOS, LogBox, Simplex, Size, Space, policy_pairs
from opdtheory.tabular import PolicyPair, TokenTree
from opdtheory.verification.blocks import Values
from opdtheory.verification.evidence import Evidence

PROOFS = "docs/proofs/trm.md"
UNIT = "R in [0, 1]"
FIXED = "every response has exactly T tokens"
NESTED = "supp π ⊆ supp μ at every context"
ANY_SUPPORT = "no condition on supports"

WORST = policy_pairs(reward="extremal")
"""For given policies the reward in [0, 1] with the largest error."""
FREE = policy_pairs()
COVERED = policy_pairs(absolutely_continuous=True)
DOUBLED = policy_pairs(reward=(0.0, 2.0))
LAWS = policy_pairs(reward=None)


LONG, DELTA = 4096, exact("1/10000")
"""The source's own regime: T = 4096, largest token KL 10⁻⁴."""
INTERIOR = policy_pairs(reward="extremal", full_support=True)
FINITE_LAWS = policy_pairs(reward=None, full_support=True)
FINITE = "full support (for finite values)"


def vacuous(bound: Any) -> tuple[bool, str]:
    """A bound on a change of J of more than 1 says nothing for rewards in [0, 1]."""
    value = float(flint.arb(bound).mid())
    return value >= 1, f"{value:.4g} at T = {LONG}, δ = 1e-4: a reward in [0, 1] cannot change by more than 1"


def sized(*pairs: tuple[int, int], eos: bool = False, prompts: int = 1) -> tuple[Size, ...]:
    """Sizes (V, T), smallest first."""
    return tuple(
        {"vocab": v, "horizon": t, "eos": v - 1 if eos else None, "prompts": prompts} for v, t in pairs
    )


ENDING = WITH_EOS
"""Trees with an end-of-sequence token."""
MULTI_STEP = sized((2, 2), (3, 2), (2, 3), (3, 3))
"""Sizes at which at least one context comes after a choice."""
TWO_PROMPTS = sized((2, 1), (2, 2), prompts=2)


def on_policy(sizes: tuple[Size, ...]) -> Space:
    """Pairs with π = μ and a free reward in [0, 1]."""
    base = policy_pairs(sizes=sizes)

    def blocks(**size: Any) -> dict[str, Any]:
        return {name: block for name, block in base.blocks(**size).items() if not name.startswith("pi.")}

    def build(values: Values, **size: Any) -> PolicyPair:
        copies = {
            name.replace("mu.", "pi."): table for name, table in values.items() if name.startswith("mu.")
        }
        return base.build(values | copies, **size)

    return replace(
        base,
        blocks=blocks,
        build=build,
        pairs=(),
        conditions=lambda x: [*base.conditions(x), (x.tv_max, "==", 0)],
        description="one policy in both roles, rewards in [0, 1]",
    )


def memoryless(
    *pairs: tuple[int, int], extra: dict[str, Any] | None = None, full_support: bool = False
) -> Space:
    """Both policies draw every token from one law, whatever came before; named scalars on request."""
    named = extra or {}

    def blocks(vocab: int, **_: Any) -> dict[str, Any]:
        return {"mu": Simplex((vocab,), not full_support), "pi": Simplex((vocab,), not full_support), **named}

    def build(values: Values, vocab: int, horizon: int, eos: int | None, prompts: int) -> PolicyPair:
        tree = TokenTree(vocab=vocab, horizon=horizon, eos=eos, prompts=prompts)
        zero = values["mu"][..., :1] * 0
        levels = {
            name: [np.repeat(values[name][..., None, :], tree.contexts(t), axis=-2) for t in range(horizon)]
            for name in ("mu", "pi")
        }
        reward = [level * zero[..., None] for level in levels["mu"]]
        scalars = {k: values[k] if values[k].shape else values[k].item() for k in named}
        return PolicyPair.from_levels(tree, levels["mu"], levels["pi"], reward, validate=False, **scalars)

    return replace(
        LAWS,
        sizes=sized(*pairs),
        blocks=blocks,
        build=build,
        pairs=(("mu", "pi"),),
        conditions=lambda x: [*LAWS.conditions(x), *(((x.min_behavior, ">", 0), (x.min_target, ">", 0)) if full_support else ())],
        description="memoryless policy pairs",
    )


def with_threshold(base: Space, low: float = 1e-4, high: float = 1.0) -> Space:
    """The same instances with a named ``threshold``."""

    def blocks(**size: Any) -> dict[str, Any]:
        return base.blocks(**size) | {"threshold": LogBox((), low, high)}

    def build(values: Values, **size: Any) -> PolicyPair:
        pair = base.build(values, **size)
        threshold = values["threshold"]
        return PolicyPair(
            pair.tree,
            pair.behavior,
            pair.target,
            pair.reward,
            validate=False,
            threshold=threshold if threshold.shape else threshold.item(),
        )

    return replace(base, blocks=blocks, build=build, description=f"{base.description}, threshold δ")


def table(name: str, rows: Callable[[], list[tuple[str, Any, str]]]) -> Callable[[], Evidence]:
    """Printed numbers as evidence: each (label, value, printed) must round to the digits that are printed."""

    def run() -> Evidence:
        said = []
        ok = True
        for label, value, printed in rows():
            digits = len(printed.partition(".")[2])
            half = exact(1) / (2 * 10**digits)
            ball, quoted = to_ball(value), exact(printed)
            ok = ok and bool(ball >= quoted - half) and bool(ball <= quoted + half)
            said.append(f"{label} = {float(ball.mid()):.6g} (printed {printed})")
        return Evidence("computed", ok, f"{name}: " + "; ".join(said))

    run.__name__ = name
    return run
