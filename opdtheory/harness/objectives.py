"""Training objectives on scored rollouts: on-policy distillation in its advantage forms, TOP-D, TrOPD, full
divergences.

The sampled objectives are Σ_t A_t log π(y_t) with advantages held constant; every A_t comes from the
package's reward and advantage functions. Losses are means over the response tokens of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from .. import advantages, divergences, masks, rewards
from .forward import Ids, hidden_states, pad
from .models import LanguageModel


@dataclass(frozen=True)
class Objective:
    """What one method maximises, as settings.

    ``reward`` of a token: ``opd`` (log ratio), ``topd``, ``gate``, ``clip``, ``mask`` or ``entropy``;
    ``form`` of the advantage: ``immediate``, ``total`` (i), ``togo`` (ii), ``expected`` (iv), ``lambda``,
    ``topd``; ``baseline`` subtracts the other rows' mean at the same position, which turns (ii) into (iii)
    and (iv) into (v). ``full`` names a full-vocabulary divergence descended instead: ``rkl``, ``fkl`` or
    ``jsd``.
    """

    reward: str = "opd"
    form: str = "immediate"
    baseline: bool = False
    normalise: bool = False
    clip: float | None = None
    minibatches: int = 1
    full: str | None = None
    outlier_fkl: bool = False
    guidance: bool = False


METHODS: dict[str, Objective] = {
    "immediate": Objective(),
    "total": Objective(form="total"),
    "togo": Objective(form="togo"),
    "togo-baseline": Objective(form="togo", baseline=True),
    "expected": Objective(form="expected"),
    "expected-baseline": Objective(form="expected", baseline=True),
    "lambda": Objective(form="lambda"),
    "topd-immediate": Objective(reward="topd"),
    "topd": Objective(reward="topd", form="topd", normalise=True, clip=0.2, minibatches=2),
    "tropd-gate": Objective(reward="gate"),
    "tropd-clip": Objective(reward="clip"),
    "tropd-mask": Objective(reward="mask"),
    "tropd-gate-fkl": Objective(reward="gate", outlier_fkl=True),
    "tropd": Objective(reward="gate", outlier_fkl=True, guidance=True),
    "entropy-filter": Objective(reward="entropy"),
    "full-rkl": Objective(full="rkl"),
    "full-fkl": Objective(full="fkl"),
    "full-jsd": Objective(full="jsd"),
}
"""Named methods; ``full-*`` are the references without sampling noise over the token."""


@dataclass(frozen=True)
class Settings:
    """Numbers the objectives read: α of TOP-D and of the JSD, thresholds, top-k, guidance weight, λ, chunk
    size.
    """

    alpha: float = 0.1
    tau: float = -2.0
    entropy_tau: float = 0.5
    topk: int = 64
    beta_guidance: float = 0.001
    lam: float = 0.9
    chunk: int = 32


@dataclass(frozen=True)
class Scored:
    """Rollouts of a student with the exact comparison of student and teacher at every response position.

    Arrays are float64 tensors (B, T), zero outside ``mask``: log-probabilities of the tokens under both, the
    student's entropy, KL(student‖teacher), KL(teacher‖student) and TV. ``guided`` marks tokens that the
    teacher wrote.
    """

    prompts: Ids
    responses: Ids
    tokens: torch.Tensor
    mask: torch.Tensor
    guided: torch.Tensor
    student: torch.Tensor
    teacher: torch.Tensor
    entropy: torch.Tensor
    kl_student_teacher: torch.Tensor
    kl_teacher_student: torch.Tensor
    tv: torch.Tensor
    teacher_states: torch.Tensor
    extra: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def rows(self, rows: Sequence[int]) -> Scored:
        """The given rows."""
        index = torch.as_tensor(list(rows))
        tensors = {k: v[index] for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        extra = {k: v[index] for k, v in self.extra.items()}
        return Scored(
            [self.prompts[i] for i in rows], [self.responses[i] for i in rows], **tensors, extra=extra
        )

    @property
    def own(self) -> torch.Tensor:
        """Positions (B, T) whose token the student drew."""
        return self.mask & ~self.guided


@torch.no_grad()
def score(
    student: LanguageModel,
    teacher: LanguageModel,
    prompts: Ids,
    responses: Ids,
    *,
    teacher_prompts: Ids | None = None,
    teacher_states: torch.Tensor | None = None,
    guided: Sequence[int] | None = None,
    extra: Callable[[torch.Tensor, torch.Tensor], Mapping[str, torch.Tensor]] | None = None,
    chunk: int = 32,
) -> Scored:
    """Compare student and teacher exactly on responses, which may follow different prompts for the two.

    ``guided[i]`` is how many leading tokens of row i the teacher wrote; ``extra(p, q)`` gives further (B, T)
    arrays from the full distributions of student and teacher.
    """
    tokens, mask = pad(responses)
    if teacher_states is None:
        teacher_states = hidden_states(teacher, teacher_prompts or prompts, responses)
    student_states = hidden_states(student, prompts, responses)
    columns: dict[str, list[torch.Tensor]] = {}
    for start in range(0, tokens.shape[1], chunk):
        where = slice(start, start + chunk)
        log_p = _log_softmax(student, student_states[:, where])
        log_q = _log_softmax(teacher, teacher_states[:, where]).to(log_p.device)
        p, q = log_p.exp(), log_q.exp()
        chosen = tokens[:, where, None].to(log_p.device)
        found = {
            "student": log_p.gather(-1, chosen)[..., 0],
            "teacher": log_q.gather(-1, chosen)[..., 0],
            "entropy": divergences.entropy(p),
            "kl_student_teacher": divergences.kl(p, q),
            "kl_teacher_student": divergences.kl(q, p),
            "tv": divergences.tv(p, q),
        }
        if extra is not None:
            found |= {f"extra/{k}": v for k, v in extra(p, q).items()}
        for name, values in found.items():
            columns.setdefault(name, []).append(values.cpu())
    arrays = {k: torch.cat(v, 1) * mask for k, v in columns.items()}
    lengths = torch.tensor([0] * len(tokens) if guided is None else list(guided))
    led = (torch.arange(tokens.shape[1]) < lengths[:, None]) & mask
    further = {k[6:]: arrays.pop(k) for k in list(arrays) if k.startswith("extra/")}
    return Scored(
        list(prompts),
        list(responses),
        tokens,
        mask,
        led,
        teacher_states=teacher_states,
        **arrays,
        extra=further,
    )


def token_rewards(
    objective: Objective, scored: Scored, settings: Settings, uniform: torch.Tensor
) -> torch.Tensor:
    """The reward (B, T) of each token; ``uniform`` (B, T) drives the TrOPD gate."""
    log_ratio = rewards.opd(scored.teacher, scored.student)
    kinds: dict[str, Callable[[], torch.Tensor]] = {
        "opd": lambda: log_ratio,
        "topd": lambda: rewards.topd(scored.teacher, scored.student, settings.alpha),
        "gate": lambda: rewards.tropd_gate(scored.teacher, scored.student, uniform),
        "clip": lambda: rewards.tropd_clip(log_ratio, settings.tau),
        "mask": lambda: rewards.tropd_mask(log_ratio, settings.tau),
        "entropy": lambda: rewards.entropy_filter(log_ratio, scored.entropy, settings.entropy_tau),
    }
    if objective.reward not in kinds:
        raise ValueError(f"reward {objective.reward!r}: expected one of {', '.join(kinds)}")
    return torch.where(scored.own, kinds[objective.reward](), torch.zeros_like(log_ratio))


def token_advantages(
    objective: Objective,
    reward: torch.Tensor,
    scored: Scored,
    settings: Settings,
    group: np.ndarray | None = None,
) -> torch.Tensor:
    """The advantage (B, T) of each token in the objective's form; ``group`` (B,) labels prompts for
    normalisation.
    """
    own = scored.own
    forms: dict[str, Callable[[], torch.Tensor]] = {
        "immediate": lambda: advantages.immediate(reward, own),
        "total": lambda: advantages.log_ratio_total(reward, own),
        "togo": lambda: advantages.log_ratio_to_go(reward, own),
        "expected": lambda: advantages.expected_to_go(reward, scored.kl_student_teacher, own),
        "lambda": lambda: advantages.lambda_return(reward, settings.lam, own),
        "topd": lambda: advantages.topd_return(reward, own),
    }
    if objective.form not in forms:
        raise ValueError(f"form {objective.form!r}: expected one of {', '.join(forms)}")
    values = forms[objective.form]()
    if objective.baseline:
        values = torch.where(own, values - others_mean(values, own), torch.zeros_like(values))
    if objective.normalise:
        values = advantages.group_normalize(values, group, own)
    return values


def others_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean at each position over the *other* rows, 0 where there is none: independent of the row's own
    actions.

    >>> others_mean(torch.tensor([[1.0], [3.0], [5.0]]), torch.ones(3, 1, dtype=torch.bool))[:, 0].tolist()
    [4.0, 3.0, 2.0]
    """
    kept = torch.where(mask, values, torch.zeros_like(values))
    count = mask.sum(0, keepdim=True) - mask.to(values.dtype)
    return torch.where(
        count > 0, (kept.sum(0, keepdim=True) - kept) / count.clamp_min(1), torch.zeros_like(values)
    )


def loss(
    objective: Objective,
    student: LanguageModel,
    teacher: LanguageModel,
    scored: Scored,
    advantage: torch.Tensor,
    settings: Settings,
    uniform: torch.Tensor,
) -> torch.Tensor:
    """The differentiable loss of one (mini-)batch, a mean over its response tokens."""
    states = hidden_states(student, scored.prompts, scored.responses)
    gate = masks.tropd(scored.student, scored.teacher, uniform, scored.own)
    total = states.new_zeros((), dtype=torch.float64)
    for start in range(0, scored.tokens.shape[1], settings.chunk):
        where = slice(start, start + settings.chunk)

        def piece(part: torch.Tensor, where: slice = where) -> torch.Tensor:
            log_p = _log_softmax(student, part)
            return _chunk_loss(objective, log_p, teacher, scored, advantage, gate, settings, where)

        total = total + checkpoint(piece, states[:, where], use_reentrant=False).to(total.device)
    return total / scored.mask.sum().to(total.device)


def _chunk_loss(
    objective: Objective,
    log_p: torch.Tensor,
    teacher: LanguageModel,
    scored: Scored,
    advantage: torch.Tensor,
    gate: torch.Tensor,
    settings: Settings,
    where: slice,
) -> torch.Tensor:
    device = log_p.device
    own, led, tokens = (x[:, where].to(device) for x in (scored.own, scored.guided, scored.tokens))
    chosen = log_p.gather(-1, tokens[..., None])[..., 0]
    zero = torch.zeros_like(chosen)
    if objective.full is not None:
        with torch.no_grad():
            q = _log_softmax(teacher, scored.teacher_states[:, where]).exp().to(device)
        p = log_p.exp()
        kinds: dict[str, Callable[[], torch.Tensor]] = {
            "rkl": lambda: divergences.kl(p, q),
            "fkl": lambda: divergences.kl(q, p),
            "jsd": lambda: divergences.jsd(p, q, settings.alpha),
        }
        return torch.where(own, kinds[objective.full](), zero).sum()
    weight = advantage[:, where].to(device)
    if objective.clip is None:
        gain = weight * chosen
    else:
        ratio = torch.exp(chosen - scored.student[:, where].to(device))
        clipped = ratio.clamp(1 - objective.clip, 1 + objective.clip)
        gain = torch.minimum(ratio * weight, clipped * weight)
    result = -torch.where(own, gain, zero).sum()
    if objective.outlier_fkl:
        with torch.no_grad():
            q = _log_softmax(teacher, scored.teacher_states[:, where]).exp().to(device)
        outlier = own & ~gate[:, where].to(device)
        forward_kl = divergences.topk_kl(q, log_p.exp(), settings.topk, tail=False)
        result = result + torch.where(outlier, forward_kl, zero).sum()
    if objective.guidance:
        guide = settings.beta_guidance * (scored.teacher[:, where].to(device) - chosen)
        result = result + torch.where(led, guide, zero).sum()
    return result


def guided_length(step: int, steps: int, longest: int) -> int:
    """Teacher tokens before the student takes over: ``longest`` at the first step, by a half cosine to 0 at
    the last.

    >>> [guided_length(k, 5, 16) for k in range(5)]
    [16, 14, 8, 2, 0]
    """
    return round(longest * 0.5 * (1 + math.cos(math.pi * step / max(steps - 1, 1))))


def _log_softmax(model: LanguageModel, states: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(model.head(states.to(model.head.weight.device)).double(), dim=-1)
