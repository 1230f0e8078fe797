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


TWIN = "the same, tabular"


def mismatch(
    results: Mapping[str, Any], skipped: Mapping[str, str], exact: Mapping[str, Any]
) -> dict[str, Any]:
    """Section of the engine comparison; ``exact`` holds each scenario's tabular counterpart."""
    who = "rollout vs train"
    keys = ("log_ratio_abs/mean", "log_ratio_abs/max", "kl_rollout_train/mean", "kl_rollout_train/max",
            "kl_train_rollout/mean", "tv/mean", "tv/max", "chi2_train_rollout/mean",
            "kl_rollout_train/seq_sum_mean")  # fmt: skip
    columns = [who, "tokens", "mean |log ρ|", "max", "KL(μ‖π) mean", "max", "KL(π‖μ) mean", "TV mean", "max",
               "χ²(π‖μ) mean", "D_seq"]  # fmt: skip

    def both() -> Iterable[list[Any]]:
        for name, r in results.items():
            yield [name, r["tokens"], *(r["metrics"][k] for k in keys)]
            yield [TWIN, f"T = {exact[name]['horizon']}", *(exact[name]["metrics"][k] for k in keys)]

    kept = ("tokens_kept_positive", "tokens_kept_negative", "sequences_kept")
    return {
        "title": "Rollout engine against training forward",
        "paragraphs": [
            "Exact full-vocabulary divergences in nats at every context the rollouts visited; maxima are "
            "over visited contexts only and therefore lower bounds of the maxima that the theorems use. The "
            "reward is 1 where a response ended by itself. Beside each number stands the same number of a "
            "random tabular pair with the same KL(μ‖π) per token, exact over all its responses.",
            *(f"Skipped: {name} ({why})." for name, why in skipped.items()),
        ],
        "tables": [
            table("Mismatch per token", columns, both()),
            table(
                "Sampled estimators of KL(μ‖π) per token beside its exact mean over the same contexts",
                [who, "estimator", "mean", "standard error", "exact", "tabular mean", "tabular exact"],
                (
                    [name, which, e["mean"], e["standard_error"], e["exact"], exact[name]["estimators"][which],
                     1.0 if which == "mean ratio" else exact[name]["kl_per_token"]]
                    for name, r in results.items()
                    for which, e in r["estimators"].items()
                ),
            ),
            table(
                "What each mask keeps, by the sign of the advantage",
                [who, "mask", "tokens kept, A>0", "tokens kept, A<0", "whole sequences",
                 "tabular, A>0", "tabular, A<0", "tabular, whole"],
                (
                    [name, which, *(k[x] for x in kept), *(exact[name]["masks"][which][x] for x in kept)]
                    for name, r in results.items()
                    for which, k in r["masks"].items()
                ),
            ),
            _bounds({n: r["evidence"] for n, r in results.items()}, exact, who),
            _certificates({n: r["evidence"] for n, r in results.items()}, exact, who),
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
    }  # fmt: skip


def gradients(
    result: Mapping[str, Any], exact: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Section of the gradient estimators; ``exact`` holds the tabular frontier and the TOP-D moments at the
    same KL per token.
    """
    sizes, found = [str(n) for n in config["sample_sizes"]], result["estimators"]
    twins = {e["form"]: e for e in exact["forms"]}
    # the two models' gradients have no common unit: relative to the to-go form's variance they compare
    own, other = found["togo"]["variance"]["value"], twins["togo"]["variance"]

    def relative(name: str) -> list[Any]:
        e, t = found[name], twins[name]
        upto = e["better_than_togo_up_to"]
        return [
            name, e["bias2"]["value"] / own, t["bias2"] / other, e["variance"]["value"] / own,
            t["variance"] / other, _cell(e["cosine"]), t["cosine"],
            "not told" if upto is None else upto["value"], t["better_than_togo_up_to"],
        ]  # fmt: skip

    def error(name: str, n: str) -> str:
        e, t = found[name]["mse"][n]["value"], twins[name]
        return f"{e / own:.3g} | {(t['bias2'] + t['variance'] / int(n)) / other:.3g}"

    return {
        "title": "Bias and variance of distillation gradients on a real student",
        "paragraphs": [
            f"{result['sequences']} rollouts of up to {config['max_tokens']} tokens in {result['blocks']} "
            f"blocks of one prompt each; gradients in {config['space']} of the student, sketched to "
            f"{config['sketch']} numbers. Bias is against the mean of the to-go form, which is the exact "
            "gradient of the sequence KL. Its plain estimate comes from differences of the forms on the same "
            "rollouts; the quieter one replaces a token's own reward by its exact mean at the visited "
            "context and what comes later by the exact KL at the later contexts, less the mean of the block's "
            "other rollouts. Forms (i), (ii), (iv) and those with a baseline have no bias by theorem; the plain "
            "estimate tests that. Intervals are ±1.96 jackknife standard errors over blocks. The total form (i) "
            "and the to-go form (ii) carry the noise of every later token.",
        ],
        "tables": [
            table(
                "Estimators on the same rollouts",
                ["form", "bias², plain", "bias², quiet", "variance of one sample", "cosine",
                 "smaller MSE than to-go up to n"],
                (
                    [
                        name,
                        *(_cell(e[k]) for k in ("bias2_plain", "bias2")),
                        _cell(e["variance"]),
                        _cell(e["cosine"]),
                        _cell(e["better_than_togo_up_to"], "bias not told from 0"),
                    ]
                    for name, e in found.items()
                ),
            ),
            table(
                "Mean squared error of the mean of n rollouts",
                ["form", *sizes],
                ([n, *(_cell(e["mse"][s]) for s in sizes)] for n, e in found.items()),
            ),
            table(
                "Beside the exact tabular frontier at the same KL per token, in units of the to-go form's variance",
                ["form", "bias², real", "tabular", "variance, real", "tabular", "cosine, real", "tabular",
                 "smaller MSE up to n, real", "tabular"],
                (relative(name) for name in found),
            ),
            table(
                "Mean squared error of n rollouts in the same units: real | tabular",
                ["form", *sizes],
                ([name, *(error(name, n) for n in sizes)] for name in found),
            ),
            table(
                "TOP-D: token gradients against the variance bounds, M² being the largest squared score seen",
                ["α", "E‖g̃‖²", "variance", "M²K(α)", "printed bound", "largest E[r̃²] of a context", "K(α)",
                 "tabular E‖g̃‖²", "tabular variance", "tabular M²K(α)", "tabular printed",
                 "tabular largest E[r̃²]"],
                (
                    [
                        t["alpha"],
                        _cell(t["second_moment"]),
                        *(t[k] for k in ("variance", "sharp_bound", "printed_bound",
                                         "reward_second_moment_exact_max", "sharp_constant")),
                        *(x[k] for k in ("second_moment", "variance", "sharp_bound", "printed_bound",
                                         "reward_second_moment_max")),
                    ]
                    for t, x in zip(result["topd"], exact["topd"], strict=True)
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
                "series": {n: [e["mse"][s]["value"] for s in sizes] for n, e in found.items()},
            },
            {
                "kind": "lines",
                "title": "Mean squared error of the tabular twin",
                "x_label": "rollouts",
                "y_label": "MSE",
                "x": config["sample_sizes"],
                "log": True,
                "series": {n: [t["bias2"] + t["variance"] / int(s) for s in sizes] for n, t in twins.items()},
            },
        ],
    }  # fmt: skip


def distill(
    curves: Mapping[str, Sequence[Mapping[str, float]]],
    summary: Mapping[str, Mapping[str, float]],
    exact: Mapping[str, Any],
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """Section of the distillation curves; ``exact`` holds the tabular runs and exact proximal steps."""
    alpha, horizon = config["alpha"], config["evaluation_tokens"]
    keys = ("kl_on_policy_first", "kl_on_policy_last", "kl_first", "kl_last", "tv_first", "tv_last",
            "tv_factor_per_step", "tv_factor_largest", "gradient_norm_mean", "gradient_norm_max")  # fmt: skip
    twins = exact["runs"].get("curves", {})

    def left(name: str, s: Mapping[str, float]) -> list[Any]:
        t = twins.get(name)
        first, last = curves[name][0], curves[name][max(len(curves[name]) - 2, 0)]
        shares = [_share(s[f"{kl}_last"], s[f"{kl}_first"]) for kl in ("kl_on_policy", "kl")]
        row = [name, *shares, first["entropy"], last["entropy"], first["length"]]
        if t is None:
            return [*row, "–", "–", "–", "–"]
        kl = t["kl_on_policy"]
        return [*row, kl[-1] / kl[0], t["entropy"][0], t["entropy"][-1], t["length"][0]]

    drawn = (
        ("kl_on_policy", "KL to the teacher on own rollouts", "nats per token"),
        ("kl_student_teacher", "KL to the teacher on fixed responses", "nats per token"),
        ("tv", "TV to the teacher on fixed responses", "TV per token"),
        ("gradient_norm", "Gradient norm", "norm"),
        ("entropy", "Entropy of the student", "nats per token"),
        ("length", "Response length", "tokens"),
    )
    return {
        "title": "On-policy distillation of a real student",
        "paragraphs": [
            "KL(student‖teacher) in nats per token, exact over the vocabulary: on the student's own "
            f"rollouts, and on fixed responses of the teacher. Exact proximal steps with α = {alpha} would "
            f"multiply TV by {1 - alpha:.3g} a step in every state; the guarantee for whole sequences mixed "
            f"token by token is only 1 − α^T, short of 1 by {alpha**horizon:.1e} for T = {horizon}.",
            "The tabular runs start from the same KL per token and make the expected update of each method, one "
            "step size being chosen so that full reverse KL leaves the share it left on the real student: what "
            "differs between methods there is not sampling noise.",
        ],
        "tables": [
            table(
                f"{config['steps']} steps of {config['prompts_per_step']}×{config['group']} rollouts",
                ["method", "KL own first", "last", "KL fixed first", "last", "TV first", "last",
                 "TV factor per step", "largest factor", "gradient norm", "largest norm"],
                ([name, *(s[k] for k in keys)] for name, s in summary.items()),
            ),
            table(
                "What is left beside exact updates of a tabular student from the same KL per token",
                ["method", "KL own left, real", "KL fixed left, real", "entropy first", "last", "length",
                 "KL left, tabular", "entropy first, tabular", "last", "length"],
                (left(name, s) for name, s in summary.items()),
            ),
            table(
                f"The contraction laws: exact proximal steps (α = {alpha}) of the tabular student, and the real "
                "students' TV",
                ["step", "(1 − α)^k: sequences mixed whole", "mixed token by token", "factor of it",
                 "guaranteed factor", *(f"{name}, real" for name in curves)],
                (
                    [e["step"], e["sequence_mixed"], e["token_mixed"], e["token_mixed_factor"],
                     e["token_law_factor"],
                     *(_share(c[int(e["step"])]["tv"], c[0]["tv"]) for c in curves.values())]
                    for e in exact["proximal"]
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
            for key, title, label in drawn
        ]
        + [
            {
                "kind": "lines",
                "title": "KL to the teacher of the tabular twins",
                "x_label": "step",
                "y_label": "nats per token",
                "series": {name: t["kl_on_policy"] for name, t in twins.items()},
            }
        ],
    }  # fmt: skip


def improve(
    results: Mapping[str, Any], exact: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Section of the policy-optimisation round; ``exact`` holds each method's tabular counterpart."""

    def rows() -> Iterable[list[Any]]:
        for name, r in results.items():
            q, e = r["evidence"]["quantities"], exact[name]
            yield [
                name, r["reward_before"], r["reward_after"], _cell(r["improvement"]), q["surrogate"]["value"],
                *(q[k]["value"] for k in ("kl_seq", "tv_sum", "tv_max")),
            ]  # fmt: skip
            yield [
                TWIN, e["return_before"], e["return_after"], e["improvement"], e["surrogate"],
                *(e["quantities"][k] for k in ("kl_seq", "tv_sum", "tv_max")),
            ]  # fmt: skip

    evidence = {name: r["evidence"] for name, r in results.items()}
    return {
        "title": "One trust-region step from a mismatched rollout engine",
        "paragraphs": [
            f"Task {config['task']}: {config['prompts']} training and {config['evaluation_prompts']} "
            f"held-out prompts, {config['group']} responses each of up to {config['max_tokens']} tokens. "
            "Expectations under μ are sample means over held-out responses; bounds that need a maximum over "
            "all contexts use the visited maximum and so understate themselves. The outcome is measured on "
            "fresh responses of π. The tabular rows repeat each method with exact updates from its own "
            "rollouts, its step size chosen for the same KL per token (“none” is a random pair at that distance).",
            "A promise is a lower bound on ΔJ. It is kept if the whole interval of the measured ΔJ lies above "
            "it, broken if the whole interval lies below, and open otherwise; it is vacuous where it is no more "
            "than −J(μ), which no policy can fall below.",
        ],
        "tables": [
            table(
                "Surrogate and outcome (interval: ±1.96 standard errors over prompts)",
                ["method", "J(μ)", "J(π)", "ΔJ", "surrogate L", "D_seq", "Σ TV", "largest TV seen"],
                rows(),
            ),
            table(
                "Who promised what, and what happened",
                ["method", "who", "promised: ΔJ ≥", "kind", "measured ΔJ", "verdict", "tabular promise",
                 "tabular ΔJ", "tabular verdict"],
                (line for name, r in results.items() for line in promises(name, r, exact[name])),
            ),
            _bounds(evidence, exact, "method"),
            _certificates(evidence, exact, "method"),
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


SAID = 3
"""How many of the smallest error bounds are turned into promises."""


def promises(name: str, result: Mapping[str, Any], exact: Mapping[str, Any]) -> Iterable[list[Any]]:
    """Rows of lower bounds on ΔJ: the surrogate taken at its word, less its best error bounds, the direct
    lower bounds, and the betting certificates; each with what happened, here and on the tabular twin.
    """
    found, before = result["evidence"], result["reward_before"]
    surrogate, twin = found["quantities"]["surrogate"]["value"], exact["surrogate"]
    tabular = {b["id"]: b["value"] for b in exact["bounds"]}
    errors = [b for b in found["bounds"] if b["target"] == "surrogate_error"]
    direct = [b for b in found["bounds"] if b["target"] == "improvement_lower"]
    lines: list[tuple[str, float, str, float | None]] = [("L itself", surrogate, "estimate", twin)]
    for b in sorted(errors, key=lambda b: _number(b["value"]))[:SAID]:
        here = tabular.get(b["id"])
        against = None if here is None else twin - _number(here)
        lines.append((f"L − {b['id']} ({b['name']})", surrogate - _number(b["value"]), b["kind"], against))
    for b in direct:
        here = tabular.get(b["id"])
        lines.append((f"{b['id']} ({b['name']})", _number(b["value"]), b["kind"],
                      None if here is None else _number(here)))  # fmt: skip
    for c in found["certificates"]:
        if c["method"] == "betting" and c["name"].startswith("improvement"):
            lines.append((f"certificate {c['name']}", c["lower"], "95 %", exact["certified"][c["name"]]))
    low, high = result["improvement"]["interval"]
    for who, promise, kind, against in lines:
        yield [
            name, who, promise, kind, _cell(result["improvement"]), verdict(promise, low, high, before),
            "–" if against is None else against, exact["improvement"],
            "–" if against is None
            else verdict(against, exact["improvement"], exact["improvement"], exact["return_before"]),
        ]  # fmt: skip


def verdict(promise: float, low: float, high: float, before: float) -> str:
    """``vacuous``, ``kept``, ``broken`` or ``open``: a promised lower bound beside the interval of ΔJ."""
    if promise <= -before:
        return "vacuous"
    if high < promise:
        return "broken"
    return "kept" if low >= promise else "open"


def _share(last: float, first: float) -> float | str:
    return last / first if first > 0 else "–"


def _number(value: float | str) -> float:
    """A recorded number; infinities are recorded as text."""
    return float(value)


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


def _cell(entry: Mapping[str, Any] | None, missing: str = "not told from 0") -> str:
    if entry is None:
        return missing
    low, high = (float(x) for x in entry["interval"])
    value = float(entry["value"])
    return f"{value:.4g}" if low == high else f"{value:.4g} [{low:.4g}, {high:.4g}]"


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


def _certificates(evidence: Mapping[str, Any], exact: Mapping[str, Any], who: str) -> Table:
    def truth(name: str, quantity: str) -> float:
        twin = exact[name]
        known = {"J(π)": twin["return_after"], "J(π) − J(μ)": twin["improvement"]}
        return float(known.get(quantity, twin["quantities"]["tv_seq"]))

    return table(
        "Certificates from responses of μ, at 95 % each; on the right what the estimate tends to, and the truth "
        "it speaks of, on the tabular pair",
        [who, "certificate", "of", "by", "lower", "upper", "estimate", "tabular estimate", "tabular truth"],
        (
            [name, c["name"], c["quantity"], c["method"], c["lower"], c["upper"], c["estimate"],
             exact[name]["certified"][c["name"]], truth(name, c["quantity"])]
            for name, found in evidence.items()
            for c in found["certificates"]
        ),
    )  # fmt: skip
