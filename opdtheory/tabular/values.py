"""Values of contexts and actions under a policy, for terminal and token rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from opdtheory.tabular import flow
from opdtheory.tabular.contrast import aligned
from opdtheory.tabular.policy import Policy
from opdtheory.tabular.reward import Reward
from opdtheory.tabular.table import flat_to_context_levels, flat_to_levels

__all__ = ["Values", "action_values"]


@dataclass(frozen=True)
class Values:
    """Level arrays ``q`` and ``advantage`` (batch..., contexts(t), vocab) and ``v`` (batch..., contexts(t)).

    ``expected_return`` is J, the mean of V over prompts, of the batch shape.
    """

    q: list[np.ndarray]
    v: list[np.ndarray]
    expected_return: Any

    @property
    def advantage(self) -> list[np.ndarray]:
        """A = Q - V."""
        return [q - v[..., None] for q, v in zip(self.q, self.v, strict=True)]


def action_values(policy: Policy, reward: Reward) -> Values:
    """Q, V and J of the reward still to come: Q(c, a) = r(c, a) + E[later rewards | c, a].

    For a terminal reward Q is the expected reward of the sequence.

    >>> from opdtheory.tabular import TokenTree, token_reward
    >>> tree = TokenTree(vocab=2, horizon=2)
    >>> values = action_values(Policy.uniform(tree), token_reward(tree, lambda prompt, tokens: tokens[-1]))
    >>> values.q[0].tolist(), float(values.expected_return)
    ([[0.5, 1.5]], 1.0)
    """
    policy, reward = aligned(policy.tree, policy, reward)
    tree = policy.tree
    q, v = flow.backward(tree, policy.flat, reward.flat, terminal=False)
    weights = tree.weights(policy.is_exact, policy.batch_axes)
    return Values(
        flat_to_levels(tree, q, policy.batch_shape),
        flat_to_context_levels(tree, v, policy.batch_shape),
        policy._out((v[: tree.prompts] * weights).sum(axis=0)),
    )
