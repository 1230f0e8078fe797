"""Training dynamics on the exact world: what an algorithm converges to, how fast, and where it breaks."""

from opdtheory.simulate.batch import Batch, enumerate_responses, group_standardise, sample_responses
from opdtheory.simulate.moments import UpdateMoments, update_moments
from opdtheory.simulate.optimisers import Adam, Gradient, Natural
from opdtheory.simulate.rollouts import Rollout
from opdtheory.simulate.signals import Distill, Terminal, TrOPD, View, World
from opdtheory.simulate.students import LinearStudent, TabularStudent, policy_of
from opdtheory.simulate.sweep import grid, sweep
from opdtheory.simulate.train import Algorithm, History, Snapshot, gradient, steps, train
from opdtheory.simulate.weights import MaskedSequences, NegativeDrop, OnPolicy, SequenceRatio, Unified

__all__ = [
    "Adam", "Algorithm", "Batch", "Distill", "Gradient", "History", "LinearStudent", "MaskedSequences",
    "Natural", "NegativeDrop", "OnPolicy", "Rollout", "SequenceRatio", "Snapshot", "TabularStudent",
    "Terminal", "TrOPD", "Unified", "UpdateMoments", "View", "World", "enumerate_responses", "gradient",
    "grid", "group_standardise", "policy_of", "sample_responses", "steps", "sweep", "train",
    "update_moments",
]  # fmt: skip
