"""Figures drawn from experiment records."""

from __future__ import annotations

import json

import pytest

from opdtheory.report.recorded import draw_folder, draw_record

AXES, LABELS = {"x_label": "x", "y_label": "y"}, {"labels": ["p", "q"]}
FIGURES = [
    {"kind": "lines", "title": "Curves, all", **AXES, "series": {"a": [1, 2, "inf"], "b": [3, 4]}},
    {"kind": "lines", "title": "Log", **AXES, "x": [1, 10], "log": True, "series": {"a": [5, 1]}},
    {"kind": "bars", "title": "Bars", **LABELS, "values": [0.1, 10], "log": True, "limit": 1.0,
     "limit_label": "l"},
    {"kind": "intervals", "title": "Intervals", **LABELS, "values": [0.5, 1], "intervals": [[0, 1], [1, 1]],
     "reference": [0.4, 2]},
]  # fmt: skip
RECORD = {"experiment": "toy", "report": {"figures": FIGURES}}


def test_every_kind_is_drawn_and_the_same_each_time(tmp_path):
    paths = draw_record(RECORD, tmp_path / "a")
    assert [p.name for p in paths] == [
        "toy-curves-all.svg",
        "toy-log.svg",
        "toy-bars.svg",
        "toy-intervals.svg",
    ]
    for path, again in zip(paths, draw_record(RECORD, tmp_path / "c"), strict=True):
        text = path.read_text()
        assert "<svg" in text and text == again.read_text()
    assert draw_record(RECORD, tmp_path / "b", suffix="png")[0].read_bytes()[:4] == b"\x89PNG"


def test_a_folder_of_records_is_drawn_and_other_files_are_left_alone(tmp_path):
    (tmp_path / "toy.json").write_text(json.dumps(RECORD))
    (tmp_path / "other.json").write_text("[1, 2]")
    (tmp_path / "study.json").write_text('{"study": "x"}')
    assert len(draw_folder(tmp_path, tmp_path / "out")) == 4


def test_unknown_kinds_are_refused(tmp_path):
    with pytest.raises(ValueError, match="figure kind 'pie': expected one of lines, bars, intervals"):
        draw_record({"experiment": "toy", "report": {"figures": [{"kind": "pie", "title": "x"}]}}, tmp_path)


def test_a_record_without_figures_draws_nothing(tmp_path):
    assert draw_record({"experiment": "toy"}, tmp_path) == []
