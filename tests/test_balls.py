"""Ball proofs: what is true is proved, what is false or singular never is, and what is left over is counted."""

from __future__ import annotations

import pytest

from opdtheory.claims import all_claims
from opdtheory.elementary import exp, log, maximum, sqrt
from opdtheory.verification.balls import lemma, prove_nonnegative

TRUE = {
    "tangent of the logarithm": (lambda x: x - 1 - log(x), [("1/2", 2)], {"zeros": [1]}),
    "fourth order": (lambda x: x**4 - x**5 / 2, [(-1, 1)], {"zeros": [0], "order": 4}),
    "two variables": (lambda x, y: x * x + y * y - x * y + (x * 0 + 1) / 1000, [(-1, 1), (-1, 1)], {}),
    "monotone": (lambda x: exp(x) - 1, [("1/1000000", 3)], {}),
}
NOT_PROVABLE = {
    "false by a millionth": (lambda x: x - 1 - log(x) - (x * 0 + 1) / 10**6, [("1/2", 2)], {}),
    "a dip of width 1e-10": (lambda x: ((3 * x - 1) / 3) ** 2 - (x * 0 + 1) / 10**20, [(0, 1)], {}),
    "false in two variables": (lambda x, y: x * y - (x * 0 + 1) / 10**6, [(0, 1), (0, 1)], {}),
    "a pole that changes sign": (lambda x: 1 / x + 10**9, [(-1, 1)], {}),
    "a positive pole": (lambda x: 1 / (x * x), [(-1, 1)], {}),
    "logarithm of negative numbers": (lambda x: log(x) + 100, [(-1, 1)], {}),
    "root of negative numbers": (lambda x: sqrt(x) + 1, [(-1, 1)], {"max_boxes": 500}),
    "a zero touched but not declared": (lambda x: ((3 * x - 1) / 3) ** 2, [(0, 1)], {}),
    "a zero of odd order inside": (lambda x: x**3, [(-1, 1)], {"zeros": [0], "order": 3}),
    "a declared zero that is a simple one": (lambda x: 1 - x, [(0, 2)], {"zeros": [1]}),
    "a declared zero that is none": (lambda x: x - (x * 0 + 1) / 2, [(0, 1)], {"zeros": [1]}),
    "an order beyond the true one": (lambda x: x**2 - x**3 * 2, [(0, 1)], {"zeros": [0], "order": 3}),
    "too wide for the precision": (lambda x: exp(exp(x)), [(0, 50)], {"max_boxes": 500}),
}


@pytest.mark.parametrize("name", TRUE)
def test_what_is_true_is_proved(name):
    f, domain, options = TRUE[name]
    outcome = prove_nonnegative(f, domain, **options)
    assert outcome.proved and outcome.boxes >= 1 and outcome.undecided == 0


@pytest.mark.parametrize("name", NOT_PROVABLE)
def test_what_is_false_or_singular_is_never_proved(name):
    f, domain, options = NOT_PROVABLE[name]
    outcome = prove_nonnegative(f, domain, **options)
    assert not outcome.proved
    assert outcome.undecided > 0 or outcome.negative_at is not None
    evidence = lemma(name, f, domain, **options)()
    assert not evidence.ok and f"{outcome.boxes} boxes, {outcome.undecided} undecided" in evidence.detail


def test_what_is_left_at_the_limit_of_boxes_is_counted():
    f = lambda x, y: (x - y) * (x - y)  # noqa: E731  (zero along the diagonal: no subdivision ends)
    outcome = prove_nonnegative(f, [(0, 1), (0, 1)], max_boxes=200)
    assert outcome.undecided > 10 and outcome.boxes <= 400 and not outcome.proved


def test_a_function_that_branches_or_a_reversed_domain_is_refused():
    with pytest.raises(TypeError):
        prove_nonnegative(lambda x: -1 if x > 1 / 2 else 1, [(0, 1)])
    with pytest.raises(ValueError, match="lo ≤ hi"):
        prove_nonnegative(lambda x: 1 + 0 * x, [(1, 0)])
    assert prove_nonnegative(lambda x: maximum(x, 1), [(0, 2)]).proved, "what has no derivative rule may be enclosed directly"


def test_every_ball_proof_of_the_catalogue_dies_with_its_inequality_reversed():
    """The lemmas are not proved because anything is: the negated functions are not."""
    runs = [run for claim in all_claims() for run in (*claim.proofs, *claim.lemmas) if run.__qualname__.startswith("lemma.")]
    assert len(runs) >= 10
    for run in runs:
        cells = dict(zip(run.__code__.co_freevars, (c.cell_contents for c in run.__closure__), strict=True))
        f, options = cells["f"], cells["options"] | {"max_boxes": 400}
        assert not prove_nonnegative(lambda *x, f=f: -f(*x) - (x[0] * 0 + 1) / 10**12, cells["domain"], **options).proved
