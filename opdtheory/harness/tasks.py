"""Prompts and verifiable toy rewards that need no data set."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .models import LanguageModel
from .rollouts import Rollouts

GENERAL = (
    "Why is the sky blue?",
    "Write two sentences about a lighthouse keeper.",
    "Explain what a prime number is to a child.",
    "Name three fruits and describe how they taste.",
    "How do I make a cup of tea?",
    "What is the difference between weather and climate?",
    "Give me a short plan for learning to play the guitar.",
    "Describe a walk through a forest in autumn.",
    "What does a computer's memory do?",
    "Tell me a fact about the moon.",
    "Why do we sleep?",
    "Write a short message that thanks a colleague for their help.",
    "What makes bread rise?",
    "How does a bicycle stay upright?",
    "Suggest a name for a small bookshop and say why.",
    "What is a good way to remember new words?",
)


@dataclass(frozen=True)
class Task:
    """Requests and a reward in [0, 1] of each answer's text; ``answers`` belong to the requests."""

    name: str
    requests: tuple[str, ...]
    answers: tuple[str, ...]
    score: Callable[[str, str], float]
    hint: Callable[[str], str] | None = None


def arithmetic(count: int, seed: int, top: int = 9) -> Task:
    """Sums of two numbers up to ``top``: 1 if the first number in the answer is the sum, else 0."""
    random = np.random.default_rng(seed)
    pairs = random.integers(1, top + 1, size=(count, 2))
    return Task(
        "arithmetic",
        tuple(f"What is {a} + {b}? Answer with just the number." for a, b in pairs),
        tuple(str(a + b) for a, b in pairs),
        lambda text, answer: float(re.findall(r"\d+", text)[:1] == [answer]),
        lambda answer: f"(The answer is {answer}.)",
    )


def number(count: int, seed: int) -> Task:
    """The same sums, a pure format check: 1 if the answer contains a digit, else 0."""
    task = arithmetic(count, seed)
    return replace(task, name="number", score=lambda text, _: float(any(c.isdigit() for c in text)))


def one_sentence(count: int, seed: int) -> Task:
    """General requests: 1 if the answer is one sentence ending in a full stop, else 0."""
    order = np.random.default_rng(seed).permutation(max(count, len(GENERAL))) % len(GENERAL)
    return Task(
        "one_sentence",
        tuple(f"{GENERAL[i]} Answer in one short sentence." for i in order[:count]),
        ("",) * count,
        lambda text, _: float(bool(re.fullmatch(r"[^.!?\n]+\.", text.strip()))),
    )


TASKS: dict[str, Callable[[int, int], Task]] = {
    "arithmetic": arithmetic,
    "number": number,
    "one_sentence": one_sentence,
}


def make_task(name: str, count: int, seed: int) -> Task:
    """The task called ``name`` with ``count`` requests."""
    if name not in TASKS:
        raise ValueError(f"task {name!r}: expected one of {', '.join(TASKS)}")
    if count < 1:
        raise ValueError(f"{count} prompts: expected at least 1")
    return TASKS[name](count, seed)


def general(count: int) -> list[str]:
    """The first ``count`` of the general requests."""
    if not 1 <= count <= len(GENERAL):
        raise ValueError(f"{count} prompts: expected 1..{len(GENERAL)}, or give a list of texts")
    return list(GENERAL[:count])


def encode_prompts(
    model: LanguageModel, prompts: int | Sequence[str] | Sequence[Sequence[int]]
) -> list[list[int]]:
    """Token ids of prompts given as a number of general requests, as texts, or as token ids.

    Raises ValueError for ids where the model has a privileged context, which only texts can be put into.
    """
    chosen: Sequence[Any] = general(prompts) if isinstance(prompts, int) else prompts
    told = model.system is not None or model.hint is not None
    for i, prompt in enumerate(chosen):
        if told and not isinstance(prompt, str):
            raise ValueError(f"prompt {i} is token ids, but {model.name} has a system text or hint; expected a text")
    return [model.encode(p) if isinstance(p, str) else [int(i) for i in p] for p in chosen]


def rewards(task: Task, model: LanguageModel, rollouts: Rollouts) -> np.ndarray:
    """The task's reward (B,) of each rollout."""
    texts = [model.decode(r) for r in rollouts.responses]
    return np.array([task.score(t, task.answers[i]) for t, i in zip(texts, rollouts.prompt_id, strict=True)])
