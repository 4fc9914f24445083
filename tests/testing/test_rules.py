"""Rules that do what they may not: each is found out, with the smallest case that shows it."""

import pytest
import torch

from fedray.aggregation.factor_mean import FactorMean
from fedray.aggregation.round_sum import RoundSum
from fedray.testing import check_rule


class Honest(FactorMean):
    """Padding with zeros, which declares what it breaks."""

    def __init__(self):
        super().__init__(mode="zero_pad", form="delta", name="mine")


class Silent(Honest):
    breaks = frozenset({"L5"})


class Modest(Honest):
    breaks = frozenset({"L2", "L5", "L6"})


class Strange(Honest):
    breaks = frozenset({"L5", "L6", "L7"})


class Proud(Honest):
    exact = True


class Stopped(Honest):
    def start(self, state):
        raise ZeroDivisionError("no weight")


class Other(Honest):
    """Changes the sum that a rule would give."""

    def start(self, state):
        changed, real = self.changed, super().start(state)

        class Sum(RoundSum):
            def __init__(self):
                pass

            add = staticmethod(real.add)

            def finish(self):
                return changed(state, real.finish())

        return Sum()


class Writes(Other):
    def changed(self, state, new):
        state.adapter.head["bias"].add_(1.0)
        return new


class Random(Other):
    def changed(self, state, new):
        if new is not state:
            new.adapter.head["bias"].add_(torch.rand(3, dtype=torch.float64) * 1e-13)
        return new


class Copies(Other):
    def changed(self, state, new):
        return type(new)(adapter=new.adapter, version=new.version)


def findings_of(rule, **knobs):
    return {finding.name: finding for finding in check_rule(rule, examples=8, **knobs).findings}


def test_a_rule_that_declares_its_breaks_passes_and_ends_with_its_rung():
    report = check_rule(Honest(), examples=8)
    assert report.passed
    lines = report.to_text().splitlines()
    assert lines[0] == "aggregation mine"
    assert lines[-1] == "rung: laws"
    assert "  broken  L6    as the rule says: The new product is" in report.to_text()


def test_a_break_that_is_not_declared_is_shown_on_the_smallest_case():
    report = check_rule(Silent(), examples=8)
    found = {finding.name: finding for finding in report.findings}
    assert (report.passed, report.rung) == (False, "none")
    assert {name for name, finding in found.items() if not finding.passed} == {"L6"}
    # A mean of two factors is off as soon as two clients are, or one holds less: one site, two clients.
    assert found["L6"].case.count("with weight") == 2
    assert found["L6"].case.startswith("scale 0.5; sites 'layers.0.up' 4 -> 4 of rank 1")
    assert "  FAILED  L6    does not hold, and the rule's breaks do not say so" in report.to_text()
    assert report.to_text().endswith("rung: none")


def test_a_break_that_is_never_seen_is_said_to_be_so_and_fails_nothing():
    found = findings_of(Modest())
    assert found["L2"].outcome == "declared"
    assert found["L2"].sentence.startswith("so the rule says, and never seen to be")


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        (Strange(), "breaks names L7, and the laws are L1, L2, L3, L4, L5, L6"),
        (Proud(), "exact and lossy say something else than breaks"),
        (Stopped(), "it fails with ZeroDivisionError: no weight"),
        (Writes(), "a round writes into the state that it started from"),
        (Random(), "the same calls give other bits the second time"),
        (Copies(), "with nothing added, finish returns another state than it had"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Honest) else "",
)
def test_what_no_rule_may_do_is_one_sentence(rule, sentence):
    found = findings_of(rule)
    assert not found["rule"].passed
    assert sentence in found["rule"].sentence
    assert found["rule"].case
