"""`fedray check`: what a name or a file stands for, what is printed, and the exit code."""

import re
import subprocess
import sys

import pytest

import fedray
from fedray.cli import main
from fedray.errors import ConfigError, PolicyError
from fedray.policy_file import named_files
from fedray.policy_loading import load_policy
from fedray.python_file import run_file
from fedray.shipped import shipped
from fedray.testing.claims import claim_of

POLICY = """
RUNG = "definition"
PAPER = "2312.05642"
CHECKS = ("checks/test_mine.py",)

def assign(cohort, offers, *, largest=True):
    return offers.best(offers.sum_of_ranks * (1 if largest else -1))
"""
UNFIT = POLICY.replace("return offers.best", "return [len(offers.menu) - 1] * len(cohort); offers.best")
RULE = """
from fedray.aggregation.factor_mean import FactorMean
class Mine(FactorMean):
    PAPER = "2408.08699"
    breaks = frozenset({"L5", "L6"})
    def __init__(self, *, form="delta"):
        super().__init__(mode="zero_pad", form=form, name="mine")
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        (tmp_path / "checks").mkdir(exist_ok=True)
        (tmp_path / "checks" / "test_mine.py").write_text("def test_by_hand():\n    assert 1 + 1 == 2\n")
        path = tmp_path / "mine.py"
        path.write_text(text)
        return str(path)

    return write


def told(capsys, *arguments):
    code = main(["check", *arguments, "--examples", "3"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_policys_file_is_checked_and_its_claim_shown(write, capsys):
    code, out, _ = told(capsys, write(POLICY), "--option", "largest=false")
    assert code == 0
    first, *_, claim, rung = out.splitlines()
    assert first.startswith("policy mine (")
    assert claim.startswith(
        "  claims definition of arXiv 2312.05642: shown, by checks/test_mine.py: 1 passed in "
    )
    assert rung == "rung: definition"


def test_a_policy_that_fails_ends_with_code_1_and_without_a_rung(write, capsys):
    code, out, _ = told(capsys, write(UNFIT))
    assert code == 1
    assert "  FAILED  memory       The policy gave client " in out
    assert "smallest case found: client 0: " in out
    assert out.splitlines()[-1] == "rung: none"


def test_a_rules_file_is_held_to_its_laws(write, capsys):
    code, out, _ = told(capsys, write(RULE))
    assert (code, out.splitlines()[-1]) == (0, "rung: laws")
    code, out, _ = told(capsys, write(RULE), "--option", "form=state")
    assert code == 1
    assert "  FAILED  L1    does not hold, and the rule's breaks do not say so" in out


def test_a_name_that_stands_for_a_policy_and_a_rule_has_two_reports():
    policy, rule = fedray.check("hetlora", examples=2)
    assert (policy.subject.startswith("policy hetlora"), rule.subject) == (
        True,
        "aggregation hetlora (arXiv 2401.06432)",
    )


@pytest.mark.parametrize(
    ("target", "options", "sentence"),
    [
        ("hetlara", [], "No policy and no aggregation is named 'hetlara'; .* Did you mean 'hetlora'"),
        ("nowhere/mine.py", [], "There is no file nowhere/mine.py to check"),
        ("drop_weak", ["--option", "min_shar=1"], "has no option 'min_shar'; .* Did you mean 'min_share'"),
        ("within_deadline", [], "needs the option 'deadline_seconds'"),
    ],
)
def test_what_cannot_be_checked_is_a_sentence_and_code_2(capsys, target, options, sentence):
    code, _, err = told(capsys, target, *options)
    assert code == 2
    assert re.search(sentence, err), err


def test_a_file_that_is_neither_or_does_not_run_is_said(write):
    with pytest.raises(ConfigError, match=r"does not run: ZeroDivisionError: .*, at .*mine\.py:2"):
        fedray.check(write("\n1 / 0\n"))
    with pytest.raises(PolicyError, match="must hold one policy"):
        fedray.check(write("x = 1\n"))


def test_without_hypothesis_one_sentence_says_what_to_install():
    code = (
        "import sys, importlib.util as u\n"
        "found = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'hypothesis' else found(name, *more)\n"
        "from fedray.cli import main\n"
        "sys.exit(main(['check', 'drop_weak']))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stderr == (
        "fedray: fedray check draws its cases with hypothesis, which is not installed; install it with: pip "
        "install 'fedray[testing]'.\n"
    )


def test_shipped_policies_claim_what_their_tests_show(repository):
    rungs = {}
    for file in sorted(named_files(shipped("policies")).values()):
        claim = claim_of([run_file(file, "claims")], file)
        rungs[file.stem] = claim.rung
        assert all((file.parent / name).resolve().is_file() for name in claim.checks)
        assert (file.parent.name == "unverified") == file.stem.endswith("_style")
        assert claim.rung == "laws" or file.parent.name != "unverified"
        assert load_policy(file, {"deadline_seconds": 1.0} if file.stem == "within_deadline" else None)
    above = {name for name, rung in rungs.items() if rung != "laws"}
    assert above == {
        "depthfl",
        "dtfl",
        "fed_hello",
        "fedra",
        "fedrolex",
        "fjord",
        "ffa",
        "flexlora",
        "flora",
        "heterofl",
        "hetlora",
        "inclusivefl",
    }


def test_checking_leaves_no_file_where_it_is_run(write, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    path = write(POLICY.replace('"definition"', '"laws"'))
    monkeypatch.chdir(tmp_path / "here")
    fedray.check(path, examples=1)
    assert list((tmp_path / "here").iterdir()) == []
