"""Exact and sampled policy gradients of distillation and of trust-region surrogates."""

from opdtheory.gradients.estimators import ESTIMATORS, Estimator, conditional_moments, token_rewards
from opdtheory.gradients.exact import (
    bias_part,
    estimator_mean,
    immediate_part,
    objective_gradient,
    return_gradient,
    surrogate_gradient,
    weighted_gradient,
)
from opdtheory.gradients.field import asymmetry, cosine, mean_field, mean_field_jacobian, objective
from opdtheory.gradients.moments import (
    Moments,
    Paths,
    crossover,
    enumerated_moments,
    sequence_gradients,
    tabular_moments,
)
from opdtheory.gradients.parameters import LinearLogits, TabularLogits, TorchLogits, one_logit, shared_logits
from opdtheory.gradients.sampling import SampledGradient, rollout, sampled_gradient

__all__ = [
    "ESTIMATORS", "Estimator", "LinearLogits", "Moments", "Paths", "SampledGradient", "TabularLogits",
    "TorchLogits", "asymmetry", "bias_part", "conditional_moments", "cosine", "crossover",
    "enumerated_moments", "estimator_mean", "immediate_part", "mean_field", "mean_field_jacobian",
    "objective", "objective_gradient", "one_logit", "return_gradient", "rollout", "sampled_gradient",
    "sequence_gradients", "shared_logits", "surrogate_gradient", "tabular_moments", "token_rewards",
    "weighted_gradient",
]  # fmt: skip
