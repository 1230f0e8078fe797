"""The exact world: token trees, policies on them, and every quantity of a pair of policies."""

from opdtheory.tabular.chains import FiniteContextChain
from opdtheory.tabular.contrast import PolicyContrast
from opdtheory.tabular.iid import IidBinary, markov_sequence_tv
from opdtheory.tabular.masking import (
    kept_responses,
    masked_lower_bound,
    response_masked_surrogate,
    token_masked_surrogate,
)
from opdtheory.tabular.mdp import DiscountedMDP
from opdtheory.tabular.pair import PolicyPair
from opdtheory.tabular.policy import Policy
from opdtheory.tabular.reward import Reward, terminal_reward, token_reward
from opdtheory.tabular.single import SingleState
from opdtheory.tabular.teacher import TeacherStudent
from opdtheory.tabular.trajectories import Trajectories, sample_trajectories
from opdtheory.tabular.tree import TokenTree
from opdtheory.tabular.values import Values, action_values

__all__ = [
    "DiscountedMDP", "FiniteContextChain", "IidBinary", "Policy", "PolicyContrast", "PolicyPair", "Reward",
    "SingleState", "TeacherStudent", "TokenTree", "Trajectories", "Values", "action_values",
    "kept_responses", "markov_sequence_tv", "masked_lower_bound", "response_masked_surrogate",
    "sample_trajectories", "terminal_reward", "token_masked_surrogate", "token_reward",
]  # fmt: skip
