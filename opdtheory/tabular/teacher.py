"""A student and a teacher on one token tree: the quantities of on-policy distillation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Self

import numpy as np

from opdtheory.elementary import amax, asum, exact
from opdtheory.tabular import flow, local
from opdtheory.tabular.contrast import PolicyContrast, aligned
from opdtheory.tabular.instance import attach_scalars, scalars_data
from opdtheory.tabular.policy import Policy
from opdtheory.tabular.tree import TokenTree

__all__ = ["TeacherStudent"]


class TeacherStudent:
    """Student π, teacher q and, optionally, a candidate π̃ for the next student; all quantities are lazy.

    ``scalars`` (such as alpha, of the batch shape) become attributes.  The reward of a student is
    r = log(q/π); η(π) = E_π Σ_t r = -KL(π‖q) of sequences.

    >>> tree = TokenTree(vocab=2, horizon=1)
    >>> x = TeacherStudent.from_levels(tree, teacher=[[["1/4", "3/4"]]], student=[[["1/2", "1/2"]]])
    >>> x.l1_seq, x.l1_token_mixed("1/2")
    (1/2, 1/4)
    """

    def __init__(
        self,
        tree: TokenTree,
        teacher: Policy,
        student: Policy,
        candidate: Policy | None = None,
        **scalars: Any,
    ) -> None:
        self.tree = tree
        given = (student, teacher) if candidate is None else (student, teacher, candidate)
        self.student, self.teacher, *rest = aligned(tree, *given)
        self.candidate: Policy | None = rest[0] if rest else None
        self.batch_shape = self.student.batch_shape
        self.scalars = scalars
        attach_scalars(self, scalars)

    @classmethod
    def from_levels(
        cls,
        tree: TokenTree,
        teacher: Sequence[Any],
        student: Sequence[Any],
        candidate: Sequence[Any] | None = None,
        *,
        validate: bool = True,
        **scalars: Any,
    ) -> Self:
        """Build from lists of level arrays in the public layout."""
        given = {"teacher": teacher, "student": student} | (
            {} if candidate is None else {"candidate": candidate}
        )
        policies = {
            name: Policy.from_levels(tree, levels, validate=validate) for name, levels in given.items()
        }
        return cls(tree, **policies, **scalars)

    def to_data(self) -> dict[str, Any]:
        """JSON-ready instance of a certificate: every number a fraction string."""
        tables = {"teacher": self.teacher, "student": self.student, "candidate": self.candidate}
        policies = {name: table.to_data() for name, table in tables.items() if table is not None}
        return self.tree.to_data() | policies | scalars_data(self.scalars)

    @cached_property
    def contrast(self) -> PolicyContrast:
        """Student as the behaviour policy, teacher as the target."""
        return PolicyContrast(self.student, self.teacher)

    @property
    def is_exact(self) -> bool:
        """True if the numbers are rationals or balls."""
        return self.student.is_exact

    @property
    def horizon(self) -> int:
        """T."""
        return self.tree.horizon

    @property
    def vocab(self) -> int:
        """Number of actions."""
        return self.tree.vocab

    # ---- divergences between student and teacher

    @property
    def kl_student_teacher_seq(self) -> Any:
        """KL(student‖teacher) of sequences."""
        return self.contrast.kl_seq

    @property
    def kl_teacher_student_seq(self) -> Any:
        """KL(teacher‖student) of sequences."""
        return self.contrast.reverse_kl_seq

    @property
    def eta(self) -> Any:
        """η(student) = -KL(student‖teacher) of sequences."""
        return -self.contrast.kl_seq

    @property
    def tv_seq(self) -> Any:
        """TV of the sequence laws."""
        return self.contrast.tv_seq

    @property
    def l1_seq(self) -> Any:
        """‖π - q‖₁ of the sequence laws, 2 tv_seq."""
        return 2 * self.contrast.tv_seq

    @property
    def tv_state_max(self) -> Any:
        """max_c TV(student, teacher)."""
        return self.contrast.tv_max

    @property
    def l1_state_max(self) -> Any:
        """max_c ‖π(c) - q(c)‖₁."""
        return 2 * self.contrast.tv_max

    @property
    def kl_student_teacher_max(self) -> Any:
        """max_c KL(student‖teacher)."""
        return self.contrast.kl_max

    @property
    def kl_teacher_student_max(self) -> Any:
        """max_c KL(teacher‖student)."""
        return self.contrast.reverse_kl_max

    @property
    def expected_length_student(self) -> Any:
        """Mean number of tokens of the student, EOS counted."""
        return self.student.expected_length

    @property
    def expected_length_teacher(self) -> Any:
        """Mean number of tokens of the teacher, EOS counted."""
        return self.teacher.expected_length

    @property
    def min_student(self) -> Any:
        """Smallest student probability of the tree."""
        return self.contrast.min_behavior

    @property
    def min_teacher(self) -> Any:
        """Smallest teacher probability of the tree."""
        return self.contrast.min_target

    @property
    def min_candidate(self) -> Any:
        """Smallest candidate probability of the tree."""
        return self._step.min_target

    @cached_property
    def kl_state_sum(self) -> Any:
        """Σ_c KL(student‖teacher)(c), every context counted once."""
        return self.contrast._sum(self.contrast._kls[0])

    # ---- sampled gradient estimators of the student's logits

    def _moments(self, estimator: str, alpha: Any) -> Any:
        from opdtheory import gradients  # built on this package: known here only when asked for

        chosen = gradients.ESTIMATORS.get(estimator) or gradients.Estimator(estimator)
        if alpha is not None:
            chosen = replace(chosen, alpha=self._weight(alpha))
        return gradients.tabular_moments(self.student, self.teacher, chosen)

    def gradient_second_moment(self, estimator: str, alpha: Any = None) -> Any:
        """E‖ĝ‖² of a sampled estimator of ``opdtheory.gradients``, with TOP-D's reward if alpha is given."""
        return self._moments(estimator, alpha).second_moment

    def gradient_norm2(self, estimator: str, alpha: Any = None) -> Any:
        """‖E ĝ‖²."""
        mean = self._moments(estimator, alpha).mean
        return asum(mean * mean)

    def gradient_variance(self, estimator: str, alpha: Any = None) -> Any:
        """E‖ĝ - E ĝ‖², the trace of the covariance."""
        return self._moments(estimator, alpha).variance

    def gradient_dot(self, first: str, second: str, alpha: Any = None) -> Any:
        """⟨E ĝ_first, E ĝ_second⟩; alpha (if given) belongs to the first."""
        return asum(self._moments(first, alpha).mean * self._moments(second, None).mean)

    # ---- mixtures

    def _weight(self, alpha: Any) -> Any:
        return exact(alpha) if self.is_exact else alpha

    def token_mixed(self, alpha: Any) -> Policy:
        """The policy α q + (1 - α) π at every context."""
        return Policy.mixture(self.teacher, self.student, alpha)

    def sequence_mixed(self, alpha: Any) -> Policy:
        """The policy whose sequence law is α q(y) + (1 - α) π(y) for every prompt."""
        return Policy.sequence_mixture(self.teacher, self.student, alpha)

    def l1_token_mixed(self, alpha: Any) -> Any:
        """‖T_tok π - q‖₁ of sequence laws, T_tok π = ``token_mixed(alpha)``."""
        return 2 * PolicyContrast(self.token_mixed(alpha), self.teacher).tv_seq

    def l1_token_move(self, alpha: Any) -> Any:
        """‖T_tok π - π‖₁ of sequence laws, T_tok π = ``token_mixed(alpha)``."""
        return 2 * PolicyContrast(self.token_mixed(alpha), self.student).tv_seq

    def l1_state_mixed_max(self, alpha: Any) -> Any:
        """max_c ‖m - q‖₁(c), m = α q + (1 - α) π at every context."""
        return 2 * PolicyContrast(self.token_mixed(alpha), self.teacher).tv_max

    def l1_sequence_mixed(self, alpha: Any) -> Any:
        """‖T_seq π - q‖₁ of sequence laws, T_seq π = α q + (1 - α) π as a mixture of sequence laws."""
        return (1 - self._weight(alpha)) * self.l1_seq

    # ---- the candidate step (TOP-D, Theorem 4.9)

    @cached_property
    def _step(self) -> PolicyContrast:
        if self.candidate is None:
            raise ValueError("this TeacherStudent has no candidate: expected the argument candidate=...")
        return PolicyContrast(self.student, self.candidate)

    @cached_property
    def log_ratio_reward(self) -> np.ndarray:
        """r(c, a) = log(q/π) of the student, inner layout."""
        return local.log_ratio(self.student.flat, self.teacher.flat)

    @cached_property
    def _q_v(self) -> tuple[np.ndarray, np.ndarray]:
        return flow.backward(self.tree, self.student.flat, self.log_ratio_reward, terminal=False)

    @cached_property
    def _flat_g(self) -> np.ndarray:
        """g(c) = E_{a~π̃}[A^π(c, a)] under the frozen reward r of the student."""
        return flow.contract(self._step._diff, self._q_v[0])

    @property
    def candidate_expected_length(self) -> Any:
        """Mean number of tokens of the candidate, EOS counted."""
        return self._step.expected_length_target

    @cached_property
    def candidate_eta(self) -> Any:
        """η(π̃) = -KL(candidate‖teacher) of sequences, the reward refreshed."""
        return -PolicyContrast(self._step.target, self.teacher).kl_seq

    @cached_property
    def candidate_return_frozen(self) -> Any:
        """E_π̃ Σ_t r with the reward r = log(q/π) frozen at the student's."""
        return self._step._sum(
            local.weigh(
                self._step.target.flat_occupancy, flow.contract(self._step._pi, self.log_ratio_reward)
            )
        )

    @cached_property
    def candidate_surrogate(self) -> Any:
        """Σ_c d^π(c) g(c) = ℓ_π E_{d_norm}[E_π̃ A^π]."""
        return self._step._sum(self.student.flat_occupancy * self._flat_g)

    @cached_property
    def candidate_g_max(self) -> Any:
        """ξ = max_c |E_{a~π̃}[A^π(c, a)]|."""
        return self._step._max(abs(self._flat_g))

    @cached_property
    def candidate_tv_sum(self) -> Any:
        """Σ_t E_{d_t^π}[TV(π, π̃)] = ℓ_π E_{d_norm}[TV]."""
        return self._step.tv_sum

    @cached_property
    def candidate_tv_max(self) -> Any:
        """max_c TV(π, π̃)."""
        return self._step.tv_max

    @cached_property
    def candidate_kl_step_sum(self) -> Any:
        """Σ_t E_{d_t^π}[KL(π̃‖π)(c_t)]."""
        return self._step.reverse_kl_sum

    @cached_property
    def candidate_kl_max(self) -> Any:
        """max_c KL(π̃‖π)."""
        return self._step.reverse_kl_max

    @cached_property
    def candidate_corrected_surrogate(self) -> Any:
        """Σ_c d^π(c) g′(c), g′(c) = E_{a~π̃}[A^π(c, a)] - KL(π̃‖π)(c)."""
        return self._step._sum(local.weigh(self.student.flat_occupancy, self._corrected_g))

    @cached_property
    def _corrected_g(self) -> np.ndarray:
        return self._flat_g - self._step._kls[1]

    @cached_property
    def candidate_corrected_g_max(self) -> Any:
        """ξ′ = max_c |g′(c)|."""
        return self._step._out(amax(abs(self._corrected_g), 0))
