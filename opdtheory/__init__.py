"""Find out whether a bound about LLM post-training is true, how tight it is, and what it says about your run."""

__version__ = "0.1.0"
