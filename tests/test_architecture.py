"""Dependencies between the parts of the package point one way."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "opdtheory"
MATHEMATICS = {
    "_arrays", "elementary", "tabular", "divergences", "rewards", "advantages", "masks", "gradients", "bounds", "confidence",
}  # fmt: skip
UPPER = {"claims", "verification", "audit", "harness", "report", "cli", "cli_audit", "cli_bounds", "cli_figures", "cli_run"}
FORBIDDEN = {name: UPPER for name in MATHEMATICS} | {
    "verification": UPPER - {"verification"},
    "claims": UPPER - {"claims", "verification"},
    "audit": {"claims", "verification", "harness", "cli"},
    "checker": {p.stem for p in PACKAGE.iterdir()} - {"checker"},
}

def imported(path: Path) -> set[str]:
    """First components below ``opdtheory`` of everything a module imports, inside functions too."""
    package = ("opdtheory", *path.relative_to(PACKAGE).parent.parts)
    out = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            stem = ".".join(part for part in (base, node.module or "") if part)
            names = [f"{stem}.{alias.name}" for alias in node.names]
        else:
            continue
        out |= {name.split(".")[1] for name in names if name.startswith("opdtheory.")}
    return out & ({p.stem for p in PACKAGE.iterdir()} | {"cli"})


def modules(name: str) -> list[Path]:
    folder = PACKAGE / name
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{name}.py"]


@pytest.mark.parametrize("name", sorted(FORBIDDEN))
def test_dependencies_point_one_way(name):
    files = modules(name)
    assert files
    wrong = {f"{path.relative_to(ROOT)} imports {x}" for path in files for x in imported(path) & FORBIDDEN[name]}
    assert not wrong
