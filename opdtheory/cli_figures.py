"""The command ``opdtheory figures``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from opdtheory.verification.engine import ROOT


def figures(
    out: Annotated[Path, typer.Option(help="Folder for the images and captions.md.")] = Path("figures"),
    data: Annotated[Path, typer.Option(help="Folder of the recorded data.")] = ROOT / "figures" / "data",
    results: Annotated[Path, typer.Option(help="Folder of recorded experiment results.")] = ROOT / "benchmarks" / "results",
) -> None:
    """Regenerate every figure from recorded results."""
    from opdtheory.report.figures import draw_all

    try:
        images = draw_all(out, data, results)
    except (OSError, ValueError, KeyError) as problem:
        Console(stderr=True).print(f"opdtheory figures: {type(problem).__name__}: {problem}", style="red", markup=False)
        raise typer.Exit(2) from None
    Console().print(f"{len(images)} images in {out}")
