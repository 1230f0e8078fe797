"""How good is the attack?  Planted statements whose truth is known from elsewhere.

Each false statement is a near miss of a true one.  The engine must refute every false one and no true one, whatever
the seed; the rates are part of the report.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from opdtheory import spaces
from opdtheory.elementary import exp, log, maximum, sqrt
from opdtheory.verification.claim import Claim
from opdtheory.verification.engine import search

PAIRS = spaces.policy_pairs()
LONGER = PAIRS.with_sizes(*spaces.SMALL[1:])
DOMINATED = spaces.policy_pairs(absolutely_continuous=True)
EOS = spaces.policy_pairs(sizes=spaces.WITH_EOS)
STATES = spaces.single_states(values=(0.0, 1.0))
STATES_FULL = spaces.single_states(full_support=True, extra={"alpha": (0.01, 0.99)})
STUDENTS = spaces.teacher_students(extra={"alpha": (0.01, 0.99)})
PROCESSES = spaces.discounted_mdps()
UNIT = spaces.scalars(x=(0.0, 1.0), y=(0.0, 1.0))
POSITIVE = spaces.scalars(x=(0.01, 10.0), y=(0.01, 10.0))


def _claim(name: str, space: Any, sides: Any, relation: str = "<=", **fields: Any) -> Claim:
    return Claim(id=f"planted.{name}", space=space, sides=sides, relation=relation, **fields)  # type: ignore[arg-type]


def _share(x: Any, factor: int) -> Any:
    """``factor`` percent of x, in exact arithmetic."""
    return factor * x / 100


TRUE: tuple[Claim, ...] = (
    _claim("error-tv-sum", PAIRS, lambda x: (abs(x.error), x.tv_sum)),
    _claim("error-forward-kl", PAIRS, lambda x: (abs(x.error), x.kl_seq)),
    _claim("error-quadratic", PAIRS, lambda x: (abs(x.error), x.horizon * (x.horizon - 1) * x.tv_max**2)),
    _claim("improvement-tv", PAIRS, lambda x: (abs(x.improvement), x.tv_seq)),
    _claim("tv-union", PAIRS, lambda x: (x.tv_seq, x.tv_sum)),
    _claim("tv-horizon", PAIRS, lambda x: (x.tv_sum, x.horizon * x.tv_max)),
    _claim("pinsker-sequence", PAIRS, lambda x: (2 * x.tv_seq**2, x.kl_seq)),
    _claim("kl-horizon", PAIRS, lambda x: (x.kl_seq, x.horizon * x.kl_max)),
    _claim("surrogate-tv", PAIRS, lambda x: (abs(x.surrogate), x.tv_sum)),
    _claim("difference", PAIRS, lambda x: (x.improvement, x.surrogate + x.error), "=="),
    _claim("variance-unit", PAIRS, lambda x: (x.reward_sd**2, x.J_behavior * (1 - x.J_behavior))),
    _claim("kl-chi2", DOMINATED, lambda x: (x.reverse_kl_seq, x.chi2_seq)),
    _claim("log-improvement", DOMINATED, lambda x: (x.reward_log_w, x.improvement), signed=True),
    _claim("ratio-form", DOMINATED, lambda x: (x.surrogate, x.surrogate_reward), "=="),
    _claim("eos-error-kl", EOS, lambda x: (abs(x.error), x.kl_seq)),
    _claim("eos-hellinger", EOS, lambda x: (x.hellinger2_seq, x.tv_seq)),
    _claim("state-pinsker", STATES, lambda x: (2 * x.tv**2, x.kl_pq)),
    _claim("state-hellinger-tv", STATES, lambda x: (x.hellinger2, x.tv)),
    _claim("state-kl-chi2", STATES, lambda x: (x.kl_pq, x.chi2_pq)),
    _claim("state-jsd", STATES_FULL, lambda x: (x.jsd(x.alpha), x.alpha * x.kl_qp)),
    _claim("mixture-contracts", STUDENTS, lambda x: (x.l1_sequence_mixed(x.alpha), (1 - x.alpha) * x.l1_seq), "=="),
    _claim("token-mixture", STUDENTS, lambda x: (x.l1_token_mixed(x.alpha), x.l1_seq)),
    _claim("mdp-difference", PROCESSES, lambda x: (x.improvement - x.surrogate, x.error), "=="),
    _claim("am-gm", POSITIVE, lambda s: (2 * s.x * s.y, s.x * s.x + s.y * s.y)),
    _claim("log-tangent", POSITIVE, lambda s: (log(s.x), s.x - 1), signed=True),
    _claim("bernoulli-power", UNIT, lambda s: (1 - (1 - s.x) ** 5, 5 * s.x)),
)

FALSE: tuple[Claim, ...] = (
    _claim("error-tv-sum/cut", PAIRS, lambda x: (abs(x.error), _share(x.tv_sum, 95))),
    _claim("error-forward-kl/reversed", PAIRS, lambda x: (abs(x.error), x.reverse_kl_seq)),
    _claim("error-forward-kl/cut", PAIRS, lambda x: (abs(x.error), _share(x.kl_seq, 95))),
    _claim("error-quadratic/cut", PAIRS, lambda x: (abs(x.error), _share(x.horizon * (x.horizon - 1) * x.tv_max**2, 95))),
    _claim("improvement-tv/cut", PAIRS, lambda x: (abs(x.improvement), _share(x.tv_seq, 99))),
    _claim("tv-union/max", PAIRS, lambda x: (x.tv_seq, x.tv_max)),
    _claim("tv-horizon/off-by-one", LONGER, lambda x: (x.tv_sum, (x.horizon - 1) * x.tv_max)),
    _claim("pinsker-sequence/constant", PAIRS, lambda x: (2 * x.tv_seq**2, _share(x.kl_seq, 95))),
    _claim("kl-horizon/off-by-one", LONGER, lambda x: (x.kl_seq, (x.horizon - 1) * x.kl_max)),
    _claim("surrogate-tv/cut", PAIRS, lambda x: (abs(x.surrogate), _share(x.tv_sum, 97))),
    _claim("surrogate-promises", PAIRS, lambda x: (x.surrogate, x.improvement), signed=True),
    _claim("error-one-sided", PAIRS, lambda x: (0 * x.error, x.error), signed=True),
    _claim("variance-unit/cut", PAIRS, lambda x: (x.reward_sd**2, _share(x.J_behavior * (1 - x.J_behavior), 98))),
    _claim("kl-chi2/other-way", PAIRS, lambda x: (x.kl_seq, x.chi2_seq)),
    _claim("log-improvement/steeper", DOMINATED, lambda x: (_share(x.reward_log_w, 90), x.improvement), signed=True),
    _claim("ratio-form/support", PAIRS, lambda x: (x.surrogate, x.surrogate_reward), "=="),
    _claim("eos-error-mean-kl", EOS, lambda x: (abs(x.error) * x.horizon, x.kl_seq)),
    _claim("eos-hellinger/cut", EOS, lambda x: (x.hellinger2_seq, _share(x.tv_seq, 99))),
    _claim("state-pinsker/constant", STATES, lambda x: (2 * x.tv**2, _share(x.kl_pq, 97))),
    _claim("state-hellinger-squared", STATES, lambda x: (x.hellinger2, x.tv**2)),
    _claim("state-kl-symmetric", STATES, lambda x: (x.kl_pq, x.kl_qp)),
    _claim("state-jsd/cut", STATES_FULL, lambda x: (x.jsd(x.alpha), _share(x.alpha * x.kl_qp, 70))),
    _claim("mixture-token", STUDENTS, lambda x: (x.l1_token_mixed(x.alpha), (1 - x.alpha) * x.l1_seq)),
    _claim("token-mixture/cut", STUDENTS, lambda x: (x.l1_token_mixed(x.alpha), _share(x.l1_seq, 98))),
    _claim("mdp-quadratic", PROCESSES, lambda x: (abs(x.error) * (1 - x.gamma) ** 2, 2 * x.adv_max * x.gamma * x.tv_max**2)),
    _claim("am-gm/cut", POSITIVE, lambda s: (2 * s.x * s.y, _share(s.x * s.x + s.y * s.y, 99))),
    _claim("log-tangent/steeper", POSITIVE, lambda s: (_share(log(s.x), 102), s.x - 1), signed=True),
    _claim("bernoulli-power/cut", UNIT, lambda s: (1 - (1 - s.x) ** 5, _share(5 * s.x, 99))),
    _claim("entropy-narrow", POSITIVE, lambda s: (-s.x * log(s.x), _share(exp(s.x * 0), 36)), signed=True),
    _claim("needle", UNIT, lambda s: (maximum(1 - 1000 * ((s.x - s.y * s.y) ** 2 + (s.y - sqrt(s.x) / 2) ** 2), 0), _share(1 + 0 * s.x, 99))),
)


@dataclass(frozen=True)
class Trial:
    """One attack on one planted statement."""

    id: str
    false: bool
    seed: int
    refuted: bool
    seconds: float
    note: str


def trials(seed: int) -> list[Trial]:
    """Attack every planted statement once with this seed at default effort."""
    out = []
    for false, group in ((True, FALSE), (False, TRUE)):
        for claim in group:
            begin = time.perf_counter()
            result = search(claim, seed=seed)
            out.append(Trial(claim.id, false, seed, result.refuted, round(time.perf_counter() - begin, 3), result.note))
    return out


def summary(results: list[Trial]) -> dict[str, Any]:
    """Power (refuted share of the false, per statement the worst) and false alarms."""
    false = [t for t in results if t.false]
    by_claim: dict[str, list[Trial]] = {}
    for trial in false:
        by_claim.setdefault(trial.id, []).append(trial)
    rates = {name: sum(t.refuted for t in group) / len(group) for name, group in by_claim.items()}
    return {
        "false_statements": len(by_claim),
        "true_statements": len({t.id for t in results if not t.false}),
        "seeds": len({t.seed for t in results}),
        "power": sum(t.refuted for t in false) / len(false),
        "lowest_rate": min(rates.values()),
        "missed": sorted({f"{t.id} (seed {t.seed})" for t in false if not t.refuted}),
        "false_alarms": sorted({f"{t.id} (seed {t.seed})" for t in results if not t.false and t.refuted}),
        "slowest_seconds": max(t.seconds for t in false),
        "trials": [asdict(t) for t in results],
    }
