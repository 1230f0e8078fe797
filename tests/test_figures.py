"""Every figure can be drawn from what is committed, and has a caption and labelled axes."""

from __future__ import annotations

import json
import re

import pytest
from matplotlib.figure import Figure

from opdtheory.report import figures
from opdtheory.report.figures import FIGURES, draw_all, tightness
from opdtheory.verification.engine import ROOT
from opdtheory.verification.runner import load_record

DATA, RESULTS = ROOT / "figures" / "data", ROOT / "benchmarks" / "results"


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_axes_are_labelled_and_series_named(name):
    target = Figure()
    caption = FIGURES[name](json.loads((DATA / f"{name}.json").read_text()), target)
    assert len(caption) > 60 and caption.endswith(".")
    assert target.axes[0].get_ylabel()
    for axes in target.axes:
        assert axes.get_xlabel()
        drawn = [line for line in axes.get_lines() if len(line.get_xdata()) > 2]
        assert drawn and all(len(set(map(float, line.get_xdata()))) > 1 for line in drawn)


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_committed_figures_are_those_of_the_committed_data(name):
    """The caption quotes numbers of the recorded document: the committed one is what the document says now."""
    caption = FIGURES[name](json.loads((DATA / f"{name}.json").read_text()), Figure())
    assert f"**{name}.** {caption}" in (ROOT / "figures" / "captions.md").read_text()


@pytest.mark.parametrize("path", sorted(DATA.glob("*_*.json")), ids=lambda p: p.stem)
def test_figures_of_records_are_committed(path):
    document = json.loads(path.read_text())
    captions = (ROOT / "figures" / "captions.md").read_text()
    for entry in document["report"]["figures"]:
        stem = f"{document['experiment']}-{re.sub(r'[^a-z0-9]+', '-', entry['title'].lower()).strip('-')}"
        assert (ROOT / "figures" / f"{stem}.svg").exists(), stem
        assert f"**{stem}.** {entry.get('caption') or entry['title']}" in captions


def test_the_tightness_figure_shows_every_ratio_of_the_record():
    target = Figure()
    caption = tightness(load_record(), target)
    ratios = [c for c in load_record()["claims"] if isinstance(c["best_ratio"], float)]
    assert str(len(ratios)) in caption and len(target.axes[0].patches) == len(ratios)


def test_draw_all_writes_both_formats_with_captions(tmp_path, monkeypatch):
    images = draw_all(tmp_path, DATA, RESULTS)
    stems = {p.stem for p in images}
    assert {p.suffix for p in images} == {".svg", ".png"} and len(images) == 2 * len(stems)
    captions = (tmp_path / "captions.md").read_text()
    assert all(f"**{stem}.**" in captions for stem in stems)
    # one of them again: the same data give the same file
    monkeypatch.setattr(figures, "FIGURES", {"error-scaling": FIGURES["error-scaling"]})
    again, less = tmp_path / "again", tmp_path / "less"
    less.mkdir()
    (less / "error-scaling.json").write_bytes((DATA / "error-scaling.json").read_bytes())
    draw_all(again, less, less)
    assert (again / "error-scaling.svg").read_bytes() == (tmp_path / "error-scaling.svg").read_bytes()


def test_committed_captions_belong_to_committed_images():
    folder = ROOT / "figures"
    captions = (folder / "captions.md").read_text()
    for image in folder.glob("*.svg"):
        assert f"**{image.stem}.**" in captions and image.with_suffix(".png").exists()
