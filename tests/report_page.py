"""The report page of the committed record, without verifying anything again."""

import json
from pathlib import Path

from opdtheory.report.page import render
from opdtheory.report.studies import recorded_studies
from opdtheory.verification import power
from opdtheory.verification.runner import load_record

ROOT = Path(__file__).resolve().parents[1]


def recorded_page(studies: bool = True) -> str:
    """The HTML that ``opdtheory verify --html`` writes for the committed record."""
    document = load_record()
    files = [file for claim in document["claims"] for file in claim["certificates"]]
    certificates = {file: json.loads((ROOT / file).read_text(encoding="utf-8")) for file in files}
    return render(document, certificates, recorded_studies(ROOT) if studies else None, power.load_record())
