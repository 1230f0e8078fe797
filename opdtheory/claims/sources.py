"""The documents whose statements the catalogue checks."""

from __future__ import annotations

from opdtheory.verification.claim import Source

TOPD = Source("topd", "Trust Region Policy Distillation", "Z. Xie, L. L. Zhang, Z. Xie, M. Yang")
OPD = Source("opd", "Theory of On-Policy Distillation", "J. Liu, Z. Jiang, Y. Fu (February 2026)")
TRM = Source("trm", "Trust Region Masking for Long-Horizon LLM Reinforcement Learning", "Y. Li (December 2025)")
TROPD = Source("tropd", "Trust Region On-Policy Distillation", "read from a summary and the paper's definitions")
DPPO = Source(
    "dppo", "Rethinking the Trust Region in LLM Reinforcement Learning", "P. Qi, X. Zhou, Z. Liu, T. Pang, C. Du, M. Lin, W. S. Lee"
)
OURS = Source("ours", "Sharper results of this package", "docs/sharper-results.md")

SOURCES = {source.key: source for source in (TOPD, OPD, TRM, TROPD, DPPO, OURS)}
