"""The best discounted improvement bound, and why the immediate distillation update is no gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import sympy as sp

from opdtheory import bounds
from opdtheory.claims.sharper import DOC
from opdtheory.claims.sources import DPPO, OPD
from opdtheory.elementary import absolute, exact, log
from opdtheory.spaces import discounted_mdps
from opdtheory.verification.blocks import Values
from opdtheory.verification.claim import Mutant
from opdtheory.verification.evidence import Evidence
from opdtheory.verification.registry import claim, entry


def _leaving_state(states: int, actions: int) -> list[Values]:
    """State 0 is left through the action that only π plays; state 1 has the opposite advantages."""
    if (states, actions) != (2, 3):
        return []
    offered = []
    for eps, gamma in (("1/4", "1/2"), ("1/2", "9/10"), ("3/4", "3/4")):
        e = exact(eps)
        gain = [-e / (1 - e), exact(1), exact(-1)] if 2 * e <= 1 else [exact(-1), (1 - e) / e, exact(-1)]
        rows: dict[str, Any] = {
            "behavior": [[1 - e, e, 0]] * 2,
            "target": [[1 - e, 0, e]] * 2,
            "transition": [[[1, 0], [1, 0], [0, 1]], [[0, 1]] * 3],
            "initial": [1, 0],
            "reward": [gain, [-g for g in gain]],
            "gamma": gamma,
        }
        as_exact = np.frompyfunc(exact, 1, 1)
        offered.append(
            {k: np.asarray(as_exact(np.array(v, dtype=object)), dtype=object) for k, v in rows.items()}
        )
    return offered


@claim(
    "dppo.thm2.1-sharp",
    DPPO,
    "Theorem 2.1",
    "Best discounted bound",
    space=discounted_mdps(sizes=((2, 2), (2, 3))),
    nature="ours",
    sharpness="tight",
    hypotheses=("ξ = max |A^μ(s, a)|", "ε the largest TV of any state"),
    proof=f"{DOC}#dppo-thm2-1-sharp",
    structured=_leaving_state,
    latex=(
        r"|J(\pi)-J(\mu)-L|\le\frac{2\xi\min(2\varepsilon,1)\,\gamma"
        r"\varepsilon}{(1-\gamma)(1-\gamma+\gamma\varepsilon)}"
    ),
    sketch="|E_π A^μ| ≤ ξ min(2ε, 1); a coupling keeps the chains together with probability 1 − ε a step.",
    mutants=(
        Mutant(
            "printed-factor",
            "dies",
            "the factor 2 of the printed theorem under the sharp denominator",
            {
                "sides": lambda x: (
                    absolute(x.error) * (1 - x.gamma) * (1 - x.gamma + x.gamma * x.tv_max),
                    2 * x.adv_max * x.gamma * x.tv_max**2,
                )
            },
        ),
        Mutant(
            "linear-denominator",
            "dies",
            "without the second factor in the denominator",
            {
                "sides": lambda x: (
                    absolute(x.error) * (1 - x.gamma),
                    4 * x.adv_max * x.gamma * x.tv_max**2,
                )
            },
        ),
    ),
)
def discounted(x: Any) -> Any:
    """|J(π) − J(μ) − L| ≤ 2ξ·min(2ε, 1)·γε/((1−γ)(1−γ+γε)), attained at every ε."""
    return absolute(x.error), bounds.discounted_sharp(x.gamma, x.tv_max, x.adv_max)


# ------------------------------------------------------------------------------------- OPD


def _curl() -> Evidence:
    """T = 2: g₁(root) ignores the later logit; ∂g₁(after)/∂root = −d′(root)·KL′(after) ≠ 0."""
    root, after = sp.symbols("root after", real=True)
    visits, first, second = sp.Function("d")(root), sp.Function("K0")(root), sp.Function("K1")(after)
    field = (-sp.diff(first, root), -visits * sp.diff(second, after))
    mixed = sp.diff(field[1], root) + sp.diff(visits, root) * sp.diff(second, after)
    # V = 2: d = σ(root), d′ = σ(1 − σ) > 0; KL′ = p(1−p)(after − after*), zero at the teacher only
    p, z, star = sp.symbols("p z star")
    slope = sp.diff(p * (sp.log(p) - star) + (1 - p) * sp.log(1 - p), p).subs(sp.log(p), z + sp.log(1 - p))
    affine = sp.simplify(slope - (z - star)) == 0
    ok = sp.diff(field[0], after) == 0 and sp.expand(mixed) == 0 and affine
    return Evidence(
        "symbolic", bool(ok), "Jacobian of g₁ at T = 2: one mixed entry is 0, its transpose −d′·KL′ is not"
    )


def _uphill() -> Evidence:
    """p = 1/2 against 3/5; after token 1, 1/1000 against 999/1000: the sequence KL rises along g₁."""
    up = log(exact(999))
    root = log(exact("3/2")) / 4  # root component of g₁
    kl_after = exact("998/1000") * up
    slope_after = exact("999/1000000") * 2 * up  # |dKL/dz| of the far context
    rate = -root * root + root * kl_after / 4 - slope_after * slope_after / 4
    return Evidence(
        "computed",
        bool(rate > exact("16/100")),
        f"derivative of the sequence KL along g₁: {float(rate.mid()):.4f} > 0",
    )


def _descent() -> Evidence:
    """Each block of g₁ is −d(s)∇KL_s, so d/dt KL_s = −d(s)‖∇KL_s‖² along the flow."""
    d, slope = sp.symbols("d slope", real=True)
    return Evidence(
        "symbolic",
        sp.expand(slope * (-d * slope) + d * slope**2) == 0,
        "every state's KL falls along g₁: chain rule",
    )


entry(
    "opd.g1-curl",
    OPD,
    "Section 1.3",
    "The immediate update is no gradient field",
    nature="ours",
    sharpness="identity",
    statement=(
        "For a tabular softmax student the immediate update g₁ = −Σ_s d_θ(s)∇KL_s is not the gradient of any "
        "function (its Jacobian is not symmetric) and a small step along it can raise the KL of whole "
        "sequences; yet along its flow every state's own KL falls, so Σ_s w_s KL_s is a Lyapunov function "
        "for fixed weights w ≥ 0."
    ),
    hypotheses=("tabular softmax student", "fixed teacher of full support"),
    latex=r"g_1=-\sum_sd_\theta(s)\nabla\mathrm{KL}_s\ne\nabla F,\qquad\tfrac{d}{dt}\mathrm{KL}_s=-d_\theta(s)\|\nabla\mathrm{KL}_s\|^2",
    sketch="The later block of g₁ depends on the earlier logits through d, not the other way round; block by block it descends.",
    proof=f"{DOC}#opd-g1-curl",
    proofs=(_curl, _uphill, _descent),
)
