"""The self-contained report: complete, linked, without network, formulas readable."""

import re
from html.parser import HTMLParser

import pytest

from opdtheory.report.contexts import context_table, remainder
from opdtheory.report.page import PRINTED_WORDS, STATUS_WORDS, render, verdict_matrix
from opdtheory.report.studies import recorded_studies
from opdtheory.verification.runner import load_record
from tests.report_page import ROOT, recorded_page


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("id"):
            self.ids.append(values["id"] or "")
        if tag == "a":
            self.links.append(values["href"] or "")
        self.sources += [values[k] or "" for k in ("src", "srcset", "data") if k in values]
        if tag == "link":
            self.sources.append(values.get("href") or "")


@pytest.fixture(scope="module")
def text() -> str:
    return recorded_page()


@pytest.fixture(scope="module")
def page(text: str) -> _Page:
    return _Page(text)


def test_every_claim_has_a_row_and_a_page_and_every_link_arrives(page):
    claims = load_record()["claims"]
    anchors = {c["id"].replace("/", "--").replace(".", "-") for c in claims}
    assert len(anchors) == len(claims)
    assert anchors <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert {f"#{a}" for a in anchors} <= set(page.links)


def test_nothing_comes_from_the_network(page, text):
    assert page.sources, "the page shows recorded figures"
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    style = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style and not any("url(" in s or "@import" in s for s in style)


def test_formulas_are_mathml_without_commands_left_over(text):
    formulas = re.findall(r"<math.*?</math>", text, re.DOTALL)
    assert len(formulas) == sum(bool(c["latex"]) for c in load_record()["claims"])
    left = {command for f in formulas for command in re.findall(r"\\[A-Za-z]+", f)}
    assert not left


def test_a_page_says_statement_evidence_counterexample_and_corrections(text):
    refuted = next(c for c in load_record()["claims"] if c["status"] == "refuted" and c["certificates"])
    start = text.index(f'<article id="{refuted["id"].replace("/", "--").replace(".", "-")}"')
    section = text[start : text.index("</article>", start)]
    for words in ("Counterexample", "Evidence", f"opdtheory check {refuted['certificates'][0]}", "Why it fails"):
        assert words in section
    assert all(f">{c}</a>" in section for c in refuted["corrected_by"])


def test_tables_of_scenarios_and_constants_are_there(text):
    assert "1677 (vacuous)" in text  # the T² form at T = 4096, δ = 1e-4
    tight = [c for c in load_record()["claims"] if isinstance(c["best_ratio"], float)]
    section = text[text.index('id="constants"') : text.index('id="graph"')]
    assert section.count("<tr>") == len(tight) + 1


def test_recorded_studies_bring_paragraphs_tables_and_figures(text):
    groups = {g["name"]: g["sections"] for g in recorded_studies(ROOT)}
    assert {"Theory", "Real models", "Simulations"} <= set(groups)
    drawn = [f["name"] for sections in groups.values() for s in sections for f in s["figures"]]
    assert sorted(drawn) == sorted(p.stem for p in (ROOT / "figures").glob("*.svg"))
    assert all(s["paragraphs"] and s["tables"] for s in groups["Real models"])


def test_a_folder_without_records_has_no_studies(tmp_path):
    assert recorded_studies(tmp_path) == []


def test_the_vocabulary_of_verdicts_is_explained():
    document = load_record()
    assert {c["status"] for c in document["claims"]} <= set(STATUS_WORDS)
    assert {c["as_printed"] for c in document["claims"]} <= set(PRINTED_WORDS)
    assert sum(n for row in verdict_matrix(document["claims"]).values() for n in row.values()) == len(document["claims"])


def test_text_of_claims_is_escaped():
    document = load_record()
    claim = dict(document["claims"][0], title="<script>alert(1)</script>")
    assert "<script>alert" not in render(document | {"claims": [claim]}, {})


def test_contexts_of_an_instance_with_eos_and_two_prompts():
    row = ["1/4", "1/4", "1/2"]
    data = {
        "vocab": 3, "horizon": 2, "eos": 0, "prompts": 2, "prompt_probs": ["1/3", "2/3"],
        "teacher": [[row] * 2, [row] * 4], "scalars": {"alpha": "1/10"},
    }  # fmt: skip
    table = context_table(data)
    assert [label for label, _ in table["rows"]] == [
        "prompt 1:", "prompt 2:", "prompt 1: 1", "prompt 1: 2", "prompt 2: 1", "prompt 2: 2",
    ]  # fmt: skip
    assert "tokens EOS, 1, 2" in table["caption"]
    assert remainder(data) == {"alpha": "1/10", "prompt_probs": ["1/3", "2/3"]}
    assert context_table({"p": ["1/2", "1/2"]}) is None
