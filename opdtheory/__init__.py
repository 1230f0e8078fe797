"""Find out whether a bound about LLM post-training is true, how tight it is, and what it says about your run."""

from opdtheory import advantages, claims, divergences, masks, rewards, spaces
from opdtheory.tabular import (
    DiscountedMDP,
    Policy,
    PolicyPair,
    SingleState,
    TeacherStudent,
    TokenTree,
    terminal_reward,
)
from opdtheory.verification.claim import Claim, Mutant, Source
from opdtheory.verification.engine import search, verify

__version__ = "0.1.0"
