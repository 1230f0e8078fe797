"""The names that scripts outside the repository rely on, and a core that needs none of the extras."""

from __future__ import annotations

import subprocess
import sys

import pytest

import opdtheory as ot

FROZEN = [
    "Claim", "DiscountedMDP", "Mutant", "Policy", "PolicyPair", "SingleState", "Source", "TeacherStudent", "TokenTree",
    "advantages", "audit_logs", "bounds", "calculate", "claims", "confidence", "divergences", "gradients", "harness", "masks",
    "planning", "rewards", "search", "simulate", "spaces", "strategies", "studies", "terminal_reward", "verify",
]  # fmt: skip


def test_public_names_are_frozen_and_resolve():
    assert sorted(ot.__all__) == sorted(FROZEN)
    for name in FROZEN:
        assert getattr(ot, name) is not None
    with pytest.raises(AttributeError, match="nothing_like_that"):
        _ = ot.nothing_like_that


def test_the_core_imports_without_any_extra():
    """Torch, numba and friends are hidden; the package, its catalogue and its command line still load."""
    hidden = ["torch", "numba", "transformers", "xllamacpp", "gguf", "safetensors", "pyarrow", "ray", "hypothesis"]
    program = (
        "import sys\n"
        f"hidden = {hidden!r}\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in hidden:\n"
        "            raise ModuleNotFoundError(f'hidden: {name}')\n"
        "sys.meta_path.insert(0, Block())\n"
        "import opdtheory, opdtheory.cli\n"
        "from opdtheory.claims import all_claims\n"
        "print(len(all_claims()), opdtheory.audit_logs.__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 100


def test_the_checker_runs_alone():
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import runpy, sys; sys.argv = ['checker.py']; runpy.run_path({ot.claims.__path__[0].removesuffix('claims') + 'checker.py'!r}, run_name='__main__')"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "usage" in done.stderr
