"""Confidence bounds from samples, and certificates about one policy from samples of another."""

from opdtheory.confidence.certificates import (
    Certificate,
    certify,
    log_change_values,
    masked_change_values,
    truncated_change_values,
    truncated_values,
    tv_values,
    value_ranges,
)
from opdtheory.confidence.intervals import (
    METHODS,
    Interval,
    betting,
    betting_sequence,
    empirical_bernstein,
    group_means,
    hoeffding,
    interval,
)

__all__ = [
    "METHODS",
    "Certificate",
    "Interval",
    "betting",
    "betting_sequence",
    "certify",
    "empirical_bernstein",
    "group_means",
    "hoeffding",
    "interval",
    "log_change_values",
    "masked_change_values",
    "truncated_change_values",
    "truncated_values",
    "tv_values",
    "value_ranges",
]
