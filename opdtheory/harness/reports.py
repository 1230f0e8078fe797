"""Report sections of the real-model experiments: paragraphs, tables and figure data, tabular counterparts
beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Table = dict[str, Any]


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """One table; cells are numbers, booleans or short texts."""
    return {"caption": caption, "columns": list(columns), "rows": [list(r) for r in rows]}


def mismatch(
    results: Mapping[str, Any], skipped: Mapping[str, str], exact: Mapping[str, Any]
) -> dict[str, Any]:
    """Section of the engine comparison; ``exact`` holds each scenario's tabular counterpart."""
    who = "rollout vs train"
    keys = ("log_ratio_abs/mean", "log_ratio_abs/max", "kl_rollout_train/mean", "kl_rollout_train/max", 
            "tv/mean", "tv/max", "chi2_train_rollout/mean",
            "kl_rollout_train/seq_sum_mean")  # fmt: skip
    columns = [
        who,
        "tokens",
        "mean |log ρ|",
        "max",
        "KL(μ‖π) mean",
        "max",
        "TV mean",
        "max",
        "χ²(π‖μ)",
        "D_seq",
    ]
    return {
        "title": "Rollout engine against training forward",
        "paragraphs": [
            "Exact full-vocabulary divergences in nats at every context the rollouts visited; maxima are "
            "over visited contexts only and therefore lower bounds of the maxima that the theorems use. The "
            "reward is 1 where a response ended by itself.",
            *(f"Skipped: {name} ({why})." for name, why in skipped.items()),
        ],
        "tables": [
            table(
                "Mismatch per token",
                columns,
                ([name, r["tokens"], *(r["metrics"][k] for k in keys)] for name, r in results.items()),
            ),
            table(
                "Sampled estimators of KL(μ‖π) per token beside its exact mean over the same contexts",
                [who, "estimator", "mean", "standard error", "exact"],
                (
                    [name, which, e["mean"], e["standard_error"], e["exact"]]
                    for name, r in results.items()
                    for which, e in r["estimators"].items()
                ),
            ),
            table(
                "What each mask keeps, by the sign of the advantage",
                [who, "mask", "tokens kept, A>0", "tokens kept, A<0", "whole sequences"],
                (
                    [name, which, k["tokens_kept_positive"], k["tokens_kept_negative"], k["sequences_kept"]]
                    for name, r in results.items()
                    for which, k in r["masks"].items()
                ),
            ),
            _bounds({n: r["evidence"] for n, r in results.items()}, exact, who),
            _certificates({n: r["evidence"] for n, r in results.items()}, who),
        ],
        "figures": [
            {
                "kind": "bars",
                "title": "Mean TV between rollout engine and trainer",
                "labels": list(results),
                "values": [r["metrics"]["tv/mean"] for r in results.values()],
                "log": True,
            },
            *(_ladder(name, r["evidence"]) for name, r in list(results.items())[:1]),
        ],
    }


def gradients(
    result: Mapping[str, Any], exact: Sequence[Mapping[str, Any]], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Section of the gradient estimators; ``exact`` holds the tabular frontier at the same KL per token."""
    sizes = [str(n) for n in config["sample_sizes"]]
    twins = {e["form"]: e for e in exact}
    # bias² and variance have no common unit with the tabular model: relative to the to-go form's variance
    own, other = result["estimators"]["togo"]["variance"]["value"], twins["togo"]["variance"]
    return {
        "title": "Bias and variance of distillation gradients on a real student",
        "paragraphs": [
            f"{result['sequences']} rollouts of up to {config['max_tokens']} tokens; gradients in "
            f"{config['space']} of the student, sketched to {config['sketch']} numbers. Bias is against the "
            "mean of the to-go form, which is the exact gradient of the sequence KL, and again against form "
            "(iv), which has the same mean and less noise; intervals are ±1.96 jackknife standard errors.",
        ],
        "tables": [
            table(
                "Estimators on the same rollouts",
                ["form", "bias²", "bias² by (iv)", "variance of one sample", "cosine", "smaller MSE up to n"],
                (
                    [
                        name,
                        *(_cell(e[k]) for k in ("bias2", "bias2_against_expected", "variance", "cosine")),
                        e["better_than_togo_up_to"],
                    ]
                    for name, e in result["estimators"].items()
                ),
            ),
            table(
                "Mean squared error of the mean of n rollouts",
                ["form", *sizes],
                ([n, *(e["mse"][s]["value"] for s in sizes)] for n, e in result["estimators"].items()),
            ),
            table(
                "Beside the exact tabular frontier at the same KL per token",
                [
                    "form",
                    "variance / to-go's, real",
                    "tabular",
                    "smaller MSE up to n, real",
                    "tabular",
                    "tabular cosine",
                ],
                (
                    [
                        n,
                        e["variance"]["value"] / own,
                        twins[n]["variance"] / other,
                        e["better_than_togo_up_to"],
                        twins[n]["better_than_togo_up_to"],
                        twins[n]["cosine"],
                    ]
                    for n, e in result["estimators"].items()
                ),
            ),
            table(
                "TOP-D: token gradients against the variance bounds, M² being the largest squared score seen",
                ["α", "E‖g̃‖²", "variance", "M²K(α)", "printed bound", "largest E[r̃²] of a context", "K(α)"],
                (
                    [
                        t["alpha"],
                        _cell(t["second_moment"]),
                        t["variance"],
                        t["sharp_bound"],
                        t["printed_bound"],
                        t["reward_second_moment_exact_max"],
                        t["sharp_constant"],
                    ]
                    for t in result["topd"]
                    if t["alpha"] < 1
                ),
            ),
        ],
        "figures": [
            {
                "kind": "lines",
                "title": "Mean squared error against the number of rollouts",
                "x_label": "rollouts",
                "y_label": "MSE",
                "x": config["sample_sizes"],
                "log": True,
                "series": {n: [e["mse"][s]["value"] for s in sizes] for n, e in result["estimators"].items()},
            }
        ],
    }


def distill(
    curves: Mapping[str, Sequence[Mapping[str, float]]],
    summary: Mapping[str, Mapping[str, float]],
    exact: Sequence[Mapping[str, float]],
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """Section of the distillation curves; ``exact`` holds exact proximal steps on the tabular counterpart."""
    alpha, horizon = config["alpha"], config["evaluation_tokens"]
    factors = ("token_mixed_factor", "token_law_factor")
    keys = ("kl_on_policy_first", "kl_on_policy_last", "kl_first", "kl_last", "tv_first", "tv_last",
            "tv_factor_per_step", "gradient_norm_mean", "gradient_norm_max")  # fmt: skip
    return {
        "title": "On-policy distillation of a real student",
        "paragraphs": [
            "KL(student‖teacher) in nats per token, exact over the vocabulary: on the student's own "
            f"rollouts, and on fixed responses of the teacher. Exact proximal steps with α = {alpha} would "
            f"multiply TV by {1 - alpha:.3g} a step in every state; the guarantee for whole sequences mixed "
            f"token by token is only 1 − α^T, short of 1 by {alpha**horizon:.1e} for T = {horizon}.",
        ],
        "tables": [
            table(
                f"{config['steps']} steps of {config['prompts_per_step']}×{config['group']} rollouts",
                ["method", "KL own first", "last", "KL fixed first", "last", "TV first", "last", "TV factor",
                 "gradient norm", "largest"],
                ([name, *(s[k] for k in keys)] for name, s in summary.items()),
            ),
            table(
                "Exact proximal steps of a tabular student at the same KL per token: distance left",
                ["step", "sequences mixed whole", "mixed token by token", "factor of it", "guaranteed"],
                (
                    [e[k] for k in ("step", "sequence_mixed", "token_mixed", *factors)]
                    for e in exact
                ),
            ),
        ],
        "figures": [
            {
                "kind": "lines",
                "title": title,
                "x_label": "step",
                "y_label": label,
                "series": {name: [c[key] for c in curve if key in c] for name, curve in curves.items()},
            }
            for key, title, label in (
                ("kl_on_policy", "KL to the teacher on own rollouts", "nats per token"),
                ("kl_student_teacher", "KL to the teacher on fixed responses", "nats per token"),
                ("tv", "TV to the teacher on fixed responses", "TV per token"),
                ("gradient_norm", "Gradient norm", "norm"),
                ("entropy", "Entropy of the student", "nats per token"),
                ("length", "Response length", "tokens"),
            )
        ],
    }  # fmt: skip


def improve(
    results: Mapping[str, Any], exact: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Section of the policy-optimisation round; ``exact`` holds each method's tabular counterpart."""

    def row(name: str, r: Mapping[str, Any]) -> list[Any]:
        q, e = r["evidence"]["quantities"], exact[name]
        return [
            name, r["reward_before"], r["reward_after"], _cell(r["improvement"]), q["surrogate"]["value"],
            *(q[k]["value"] for k in ("kl_seq", "tv_sum", "tv_max")), e["improvement"], e["surrogate"],
        ]  # fmt: skip

    evidence = {name: r["evidence"] for name, r in results.items()}
    return {
        "title": "One trust-region step from a mismatched rollout engine",
        "paragraphs": [
            f"Task {config['task']}: {config['prompts']} training and {config['evaluation_prompts']} "
            f"held-out prompts, {config['group']} responses each of up to {config['max_tokens']} tokens. "
            "Expectations under μ are sample means over held-out responses; bounds that need a maximum over "
            "all contexts use the visited maximum and so understate themselves. The outcome is measured on "
            "fresh responses of π.",
        ],
        "tables": [
            table(
                "Surrogate and outcome (interval: ±1.96 standard errors over prompts)",
                ["method", "J(μ)", "J(π)", "ΔJ", "surrogate L", "D_seq", "Σ TV", "largest TV seen",
                 "tabular ΔJ", "tabular L"],
                (row(n, r) for n, r in results.items()),
            ),
            _bounds(evidence, exact, "method"),
            _certificates(evidence, "method"),
        ],
        "figures": [
            {
                "kind": "intervals",
                "title": "Improvement of the mean reward",
                "labels": list(results),
                "values": [r["improvement"]["value"] for r in results.values()],
                "intervals": [r["improvement"]["interval"] for r in results.values()],
                "reference": [r["evidence"]["quantities"]["surrogate"]["value"] for r in results.values()],
                "reference_label": "surrogate",
            }
        ],
    }  # fmt: skip


def _ladder(name: str, evidence: Mapping[str, Any]) -> dict[str, Any]:
    """Every bound on the surrogate error of one comparison, beside the largest error there can be."""
    bounds = [b for b in evidence["bounds"] if b["target"] == "surrogate_error"]
    return {
        "kind": "bars",
        "title": f"Bounds on the surrogate error, {name}",
        "labels": [f"{b['name']} ({b['id']})" for b in bounds],
        "values": [b["value"] for b in bounds],
        "log": True,
        "limit": 1.0,
        "limit_label": "vacuous from here on",
    }


def _cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "not told from 0"
    low, high = entry["interval"]
    return f"{entry['value']:.4g} [{low:.4g}, {high:.4g}]"


def _bounds(evidence: Mapping[str, Any], exact: Mapping[str, Any], who: str) -> Table:
    def rows() -> Iterable[list[Any]]:
        for name, found in evidence.items():
            twin = {b["id"]: b["value"] for b in exact[name]["bounds"]}
            for b in found["bounds"]:
                error = exact[name]["error_sup"] if b["target"] == "surrogate_error" else "–"
                yield [
                    name,
                    b["id"],
                    b["target"],
                    b["value"],
                    b["vacuous"],
                    b["kind"],
                    twin.get(b["id"], "–"),
                    error,
                ]

    return table(
        "What each bound says of |ΔJ − L| or of ΔJ; on the right the same bound, and the largest true error "
        "over all rewards, on a tabular pair with the same KL per token",
        [who, "bound", "bounds", "value", "vacuous", "kind", "tabular", "tabular error"],
        rows(),
    )


def _certificates(evidence: Mapping[str, Any], who: str) -> Table:
    return table(
        "Certificates from responses of μ, at 95 % each",
        [who, "certificate", "of", "by", "lower", "upper", "estimate"],
        (
            [name, c["name"], c["quantity"], c["method"], c["lower"], c["upper"], c["estimate"]]
            for name, found in evidence.items()
            for c in found["certificates"]
        ),
    )
