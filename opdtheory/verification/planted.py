"""Planted statements whose truth is known from elsewhere, on which the power of the attack is measured.

Every false statement is a true one with a single slip: its constant cut below a supremum that is known to be
attained or approached, a direction of a divergence swapped, a maximum in place of a sum, a horizon off by one, a
term or a hypothesis dropped.  Its id is the id of the true one, a slash, and the slip.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

from opdtheory import bounds, spaces
from opdtheory.elementary import log, maximum, sqrt
from opdtheory.verification.claim import Claim

PREFIX = "planted."

PAIRS = spaces.policy_pairs()
STEPS = PAIRS.with_sizes(*spaces.SMALL[1:])
"""At least two steps, where the surrogate errs at all."""
ONE_STEP = PAIRS.with_sizes(*({**spaces.SMALL[0], "vocab": v} for v in (2, 3)))
LONG = PAIRS.with_sizes(*({**spaces.SMALL[0], "horizon": t} for t in (3, 4)))
DOMINATED = spaces.policy_pairs(absolutely_continuous=True)
DOMINATED_STEPS = DOMINATED.with_sizes(*spaces.SMALL[1:])
EOS = spaces.policy_pairs(sizes=spaces.WITH_EOS)
STATES = spaces.single_states(values=(0.0, 1.0))
STATES_FULL = spaces.single_states(full_support=True, extra={"alpha": (0.01, 0.99)})
STUDENTS = spaces.teacher_students(extra={"alpha": (0.01, 0.99)})
STUDENT_STEPS = STUDENTS.with_sizes(*spaces.SMALL[1:4])
PROCESSES = spaces.discounted_mdps()
UNIT = spaces.scalars(x=(0.0, 1.0), y=(0.0, 1.0))
CUBE = spaces.scalars(x=(0.0, 1.0), y=(0.0, 1.0), z=(0.0, 1.0))
POSITIVE = spaces.scalars(x=(0.01, 10.0), y=(0.01, 10.0))


def _true(name: str, space: Any, sides: Any, relation: str = "<=", **fields: Any) -> Claim:
    return Claim(id=PREFIX + name, space=space, sides=sides, relation=relation, **fields)  # type: ignore[arg-type]


def _needle(s: Any) -> tuple[Any, Any]:
    """One at (2/7, 3/5), zero outside a disc around it that covers a thousandth of the square."""
    distance2 = ((7 * s.x - 2) / 7) ** 2 + ((5 * s.y - 3) / 5) ** 2
    return maximum(1 - 4000 * distance2, 0), 1 + 0 * s.x


TRUE: tuple[Claim, ...] = (
    _true("error-tv-sum", PAIRS, lambda x: (abs(x.error), x.tv_sum)),
    _true("error-forward-kl", PAIRS, lambda x: (abs(x.error), x.kl_seq)),
    _true("error-quadratic", PAIRS, lambda x: (abs(x.error), x.horizon * (x.horizon - 1) * x.tv_max**2)),
    _true("error-sharp-tv", LONG, lambda x: (abs(x.error), bounds.sharp_tv(x.horizon, x.tv_max))),
    _true("error-martingale", DOMINATED_STEPS, lambda x: (abs(x.error), x.reward_sd * sqrt(x.ratio_martingale))),
    _true("error-one-step", ONE_STEP, lambda x: (x.error, 0 * x.error), "=="),
    _true("improvement-tv", PAIRS, lambda x: (abs(x.improvement), x.tv_seq)),
    _true("tv-union", PAIRS, lambda x: (x.tv_seq, x.tv_sum)),
    _true("tv-horizon", PAIRS, lambda x: (x.tv_sum, x.horizon * x.tv_max)),
    _true("pinsker-sequence", PAIRS, lambda x: (2 * x.tv_seq**2, x.kl_seq)),
    _true("kl-horizon", PAIRS, lambda x: (x.kl_seq, x.horizon * x.kl_max)),
    _true("surrogate-tv", PAIRS, lambda x: (abs(x.surrogate), x.tv_sum)),
    _true("surrogate-remainder", DOMINATED, lambda x: (x.surrogate, x.improvement + x.reward_k3_sum), signed=True),
    _true("difference", PAIRS, lambda x: (x.improvement, x.surrogate + x.error), "=="),
    _true("variance-unit", PAIRS, lambda x: (x.reward_sd**2, x.J_behavior * (1 - x.J_behavior))),
    _true("kl-chi2", DOMINATED, lambda x: (x.reverse_kl_seq, x.chi2_seq)),
    _true("log-improvement", DOMINATED, lambda x: (x.reward_log_w, x.improvement), signed=True),
    _true("ratio-form", DOMINATED, lambda x: (x.surrogate, x.surrogate_reward), "=="),
    _true("eos-error-kl", EOS, lambda x: (abs(x.error), x.kl_seq)),
    _true("eos-hellinger", EOS, lambda x: (x.hellinger2_seq, x.tv_seq)),
    _true("state-pinsker", STATES, lambda x: (2 * x.tv**2, x.kl_pq)),
    _true("state-hellinger-tv", STATES, lambda x: (x.hellinger2, x.tv)),
    _true("state-kl-chi2", STATES, lambda x: (x.kl_pq, x.chi2_pq)),
    _true("state-gain", STATES, lambda x: (abs(x.gain), x.tv)),
    _true("state-jsd", STATES_FULL, lambda x: (x.jsd(x.alpha), x.alpha * x.kl_qp)),
    _true("mixture-sequences", STUDENTS, lambda x: (x.l1_sequence_mixed(x.alpha), (1 - x.alpha) * x.l1_seq), "=="),
    _true("mixture-tokens", STUDENT_STEPS, lambda x: (x.l1_token_mixed(x.alpha), (1 - x.alpha**x.horizon) * x.l1_seq)),
    _true("mdp-difference", PROCESSES, lambda x: (x.improvement - x.surrogate, x.error), "=="),
    _true("mdp-sharp", PROCESSES, lambda x: (abs(x.error), bounds.discounted_sharp(x.gamma, x.tv_max, x.adv_max))),
    _true("mdp-trpo", PROCESSES, lambda x: (abs(x.error), bounds.discounted_trpo(x.gamma, x.tv_max, x.adv_max))),
    _true("am-gm", POSITIVE, lambda s: (2 * s.x * s.y, s.x * s.x + s.y * s.y)),
    _true("log-tangent", POSITIVE, lambda s: (log(s.x), s.x - 1), signed=True),
    _true("bernoulli-power", UNIT, lambda s: (1 - (1 - s.x) ** 5, 5 * s.x)),
    _true("cyclic", CUBE, lambda s: (s.x * (1 - s.y) + s.y * (1 - s.z) + s.z * (1 - s.x), 1 + 0 * s.x)),
    _true("entropy-peak", POSITIVE, lambda s: (-s.x * log(s.x), 3679 / (10000 + 0 * s.x)), signed=True),
    _true("needle", UNIT, _needle),
)  # fmt: skip
"""True statements.  Those cut in ``_CUT`` have the supremum of lhs/rhs equal to 1."""

_CUT: Mapping[str, Fraction] = {
    name: Fraction(99, 100)
    for name in (
        "error-tv-sum", "error-forward-kl", "error-quadratic", "error-sharp-tv", "error-martingale", "improvement-tv",
        "tv-union", "tv-horizon", "pinsker-sequence", "kl-horizon", "surrogate-tv", "variance-unit", "kl-chi2",
        "eos-error-kl", "eos-hellinger", "state-pinsker", "state-hellinger-tv", "state-kl-chi2", "state-gain",
        "mixture-tokens", "mdp-sharp", "am-gm", "bernoulli-power", "cyclic", "needle",
    )
} | {"state-jsd": Fraction(98, 100)}  # fmt: skip
"""Constants cut by 1 %.  Of JSD_α ≤ α·KL the supremum is 1 − α, and the space stops at α = 1/100: cut by 2 %."""

_SLIPS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "error-forward-kl/reversed": ("KL(π‖μ) for KL(μ‖π)", {"sides": lambda x: (abs(x.error), x.reverse_kl_seq)}),
    "error-one-step/two": ("two steps for one", {"space": STEPS}),
    "tv-union/max": ("a maximum for the sum", {"sides": lambda x: (x.tv_seq, x.tv_max)}),
    "tv-horizon/off-by-one": ("T − 1 for T", {"space": LONG, "sides": lambda x: (x.tv_sum, (x.horizon - 1) * x.tv_max)}),
    "kl-horizon/off-by-one": ("T − 1 for T", {"space": LONG, "sides": lambda x: (x.kl_seq, (x.horizon - 1) * x.kl_max)}),
    "surrogate-remainder/dropped": ("without the k3 term", {"sides": lambda x: (x.surrogate, x.improvement)}),
    "difference/surrogate-only": ("without the error", {"sides": lambda x: (x.improvement, x.surrogate)}),
    "kl-chi2/other-way": ("KL(μ‖π) for KL(π‖μ)", {"sides": lambda x: (x.kl_seq, x.chi2_seq)}),
    "log-improvement/steeper": ("99 % of the left side, which may be negative",
                                {"sides": lambda x: (99 * x.reward_log_w / 100, x.improvement)}),
    "ratio-form/support": ("without supp π ⊆ supp μ", {"space": PAIRS}),
    "state-hellinger-tv/squared": ("TV² for TV", {"sides": lambda x: (x.hellinger2, x.tv**2)}),
    "state-kl-chi2/swapped": ("χ²(q‖p) for χ²(p‖q)", {"sides": lambda x: (x.kl_pq, x.chi2_qp)}),
    "mixture-sequences/tokens": ("tokens mixed for sequences",
                                 {"sides": lambda x: (x.l1_token_mixed(x.alpha), (1 - x.alpha) * x.l1_seq), "relation": "<="}),
    "mixture-tokens/off-by-one": ("T − 1 for T", {"sides": lambda x: (x.l1_token_mixed(x.alpha), (1 - x.alpha ** (x.horizon - 1)) * x.l1_seq)}),
    "mdp-trpo/halved": ("2 for 4", {"scale": Fraction(1, 2)}),
    "log-tangent/steeper": ("101 % of the logarithm", {"sides": lambda s: (101 * log(s.x) / 100, s.x - 1)}),
    "entropy-peak/cut": ("0.367 for 1/e", {"sides": lambda s: (-s.x * log(s.x), 367 / (1000 + 0 * s.x))}),
}  # fmt: skip


def _planted() -> dict[str, tuple[Claim, str]]:
    true = {claim.id.removeprefix(PREFIX): claim for claim in TRUE}
    out: dict[str, tuple[Claim, str]] = {}
    for name, factor in _CUT.items():
        cut = replace(true[name].scaled(factor), id=f"{PREFIX}{name}/cut")
        out[cut.id] = cut, f"constant cut by {100 * (1 - factor)} %"
    for name, (slip, changes) in _SLIPS.items():
        wrong = replace(true[name.partition("/")[0]], id=PREFIX + name, **changes)
        out[wrong.id] = wrong, slip
    return out


SLIPS: Mapping[str, str] = {claim_id: slip for claim_id, (_, slip) in _planted().items()}
"""False statement → what was changed."""
FALSE: tuple[Claim, ...] = tuple(claim for claim, _ in _planted().values())
