"""The order in which a reader of each document meets its statements."""

from __future__ import annotations

READING_ORDER: dict[str, str] = {
    "topd": "obj eq5 eq6 support eq7 eq8 norm alg1 thm4.2 lemma28 rem4.3 togo-var thm4.4 rem4.5 thm4.9 vac4.9 rem4.10 "
    "thm4.9-fixed pinsker tables",
    "opd": "obj thm1.i thm1.ii thm1.iii thm1.iv thm1.v reinforce bias g1-curl lemma1 thm2 var-table var-criterion iv-vs-ii "
    "rao-blackwell frontier thm3.imm thm3.togo",
    "trm": "2.1.2 2.2.2 2.2.4 2.2.5 2.2.6 pdi 2.4 2.5.0 2.5.1 2.5.3 2.5.4 2.5.5 2.5.6 2.5.7 2.6.1 2.6.5 nonvacuous 3.2.1 3.2.2 "
    "3.3.2 3.4 guarantee 4.2.1 reverse k3 a2 a4 a7 a8 adaptive",
    "tropd": "gate k1 gated-k1-is-rkl bounded stationary direction mask-norm topk-lower topk-bias suppressed jsd offpolicy",
    "dppo": "thm2.1 thm3.1 thm3.2 eq8 eq9 eq10 4.2 eq12 eq13 eq14 eq15 b1 b3 b4 c1 c2 eq23",
    "ours": "s0 s1 s2 s3 s4 s5 s6 s7 s8 s9 s10 s11 s12 s13 cert",
}
"""Document → names of its statements, by their place in it; ``a/b`` and ``a-b`` follow ``a`` unless they are listed."""

_PLACES = {f"{source}.{name}": i for source, names in READING_ORDER.items() for i, name in enumerate(names.split())}


def place(claim_id: str) -> tuple[int, bool]:
    """Where an entry stands in its document: the listed statement it belongs to, and whether it is a variant of that.

    What has no listed statement before a ``/`` or ``-`` comes last.

    >>> place("trm.2.4") < place("trm.2.4/error") < place("trm.2.5.1") < place("trm.a2/both")
    True
    """
    name = claim_id
    while name not in _PLACES:
        cut = max(name.rfind("/"), name.rfind("-"))
        if cut < 0:
            return len(_PLACES), True
        name = name[:cut]
    return _PLACES[name], name != claim_id
