"""What a file claims of itself, and what its own tests show of it."""

import re
from types import SimpleNamespace

import pytest

from fedray.errors import ConfigError
from fedray.testing.claims import claim_of, shown_by
from fedray.testing.findings import Claim, Finding, Report, Shown

PASSED = Finding(name="memory", outcome="passed", sentence="nobody")
FAILED = Finding(name="memory", outcome="failed", sentence="somebody")
DEFINITION = Claim(rung="definition", paper="2312.05642", checks=("test_mine.py",))


def report(finding=PASSED, claim=DEFINITION, shown=None):
    return Report(subject="policy mine", findings=(finding,), claim=claim, shown=shown)


def test_a_claim_is_read_from_the_module_and_then_from_the_class():
    module, kind = SimpleNamespace(RUNG="definition"), SimpleNamespace(RUNG="result", PAPER="2312.05642")
    assert claim_of([module, kind], "mine.py") == Claim(rung="definition", paper="2312.05642")
    assert claim_of([SimpleNamespace()], "mine.py") == Claim(rung="laws")


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"RUNG": "theorem"}, "RUNG in mine.py is one of laws, definition, result, found 'theorem'"),
        (
            {"PAPER": 2312.05642},
            "PAPER in mine.py is a text, an arXiv id such as '2312.05642', found 2312.05642",
        ),
        ({"CHECKS": "test_mine.py"}, "CHECKS in mine.py is a tuple of paths relative to that file"),
    ],
)
def test_a_claim_written_otherwise_is_refused(said, sentence):
    with pytest.raises(ConfigError, match=sentence):
        claim_of([SimpleNamespace(**said)], "mine.py")


@pytest.mark.parametrize(
    ("claim", "sentence"),
    [
        (Claim(rung="definition", checks=("test_mine.py",)), "for the file names no PAPER"),
        (Claim(rung="result", paper="2312.05642"), "for the file names no CHECKS, tests that show it"),
        (DEFINITION, "for there is no .*test_mine.py"),
    ],
)
def test_a_claim_that_nothing_shows_falls_back_to_the_laws_and_fails_nothing(tmp_path, claim, sentence):
    shown = shown_by(claim, tmp_path / "mine.py")
    found = report(claim=claim, shown=shown)
    assert (found.passed, found.rung) == (True, "laws")
    assert "not shown, for" in found.to_text()
    assert shown.outcome == "absent"
    assert re.search(sentence, shown.sentence)


@pytest.mark.parametrize(
    ("holds", "outcome", "rung"), [("True", "shown", "definition"), ("False", "failed", "laws")]
)
def test_the_tests_that_a_file_names_are_run(tmp_path, holds, outcome, rung):
    (tmp_path / "test_mine.py").write_text(f"def test_by_hand():\n    assert {holds}\n")
    shown = shown_by(DEFINITION, tmp_path / "mine.py")
    assert shown.outcome == outcome
    assert shown.sentence.startswith(f"by test_mine.py: 1 {'passed' if outcome == 'shown' else 'failed'}")
    found = report(shown=shown)
    assert (found.passed, found.rung) == (outcome == "shown", rung)
    assert found.to_text().splitlines()[-2].startswith("  claims definition of arXiv 2312.05642: ")


def test_a_claim_of_the_laws_needs_nothing_else(tmp_path):
    assert shown_by(Claim(paper="2312.05642"), tmp_path / "mine.py") is None


def test_nothing_is_shown_of_what_fails_its_own_checks():
    shown = Shown(outcome="shown", sentence="by test_mine.py: 1 passed")
    assert (report(FAILED, shown=shown).passed, report(FAILED, shown=shown).rung) == (False, "none")
    assert report(FAILED).to_text().splitlines() == [
        "policy mine",
        "  FAILED  memory  somebody",
        "rung: none",
    ]
