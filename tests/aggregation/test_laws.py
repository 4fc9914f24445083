"""The laws of `fedray.aggregation.rule`, for every rule: undeclared ones hold, declared breaks are real."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.aggregation.factor_mean import FactorMean
from fedray.aggregation.presets import PRESETS, make_aggregation
from fedray.aggregation.product_svd import ProductSVD
from fedray.aggregation.rule import LAWS, Aggregation
from fedray.aggregation.server_optimizer import ServerStepped
from fedray.config.aggregation_sections import ServerAdam, ServerMomentum
from fedray.testing import check_rule
from fedray.testing.law_cases import law_cases
from fedray.testing.laws import CHECKS, Trial

FACTOR_MEANS = {
    f"{mode}-{form}": FactorMean(mode=mode, form=form)
    for mode in ("zero_pad", "hetlora", "dimension")
    for form in ("delta", "state")
}
RULES: dict[str, Aggregation] = {
    **FACTOR_MEANS,
    "product_svd-state": ProductSVD(form="state"),
    **{name: make_aggregation(name) for name in PRESETS},
    "momentum": ServerStepped(rule=make_aggregation("ffa_lora"), optimizer=ServerMomentum(learning_rate=0.5)),
    "adam": ServerStepped(rule=make_aggregation("factor_mean"), optimizer=ServerAdam(learning_rate=0.1)),
}


def test_every_law_has_a_check():
    assert CHECKS.keys() == LAWS.keys()


@pytest.mark.parametrize("name", RULES)
def test_a_rule_keeps_the_laws_that_it_does_not_declare_broken_and_breaks_those_that_it_does(name):
    report = check_rule(RULES[name], examples=10)
    assert report.passed, report.to_text()
    declared = [finding for finding in report.findings if finding.outcome == "declared"]
    assert {finding.name for finding in declared} == RULES[name].breaks
    assert all(finding.sentence.startswith("as the rule says") for finding in declared), report.to_text()


def test_stacks_a_shared_a_and_a_corrected_base_are_exact_and_published_states_are_lossy():
    assert {name for name in PRESETS if RULES[name].exact} == {"stack", "flora", "ffa_lora", "fedex_lora"}
    assert {name for name in PRESETS if RULES[name].lossy} == {"fedit", "hetlora", "flexlora", "inclusivefl"}


@pytest.mark.parametrize("name", FACTOR_MEANS)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(case=law_cases(), times=st.floats(0.25, 4.0))
def test_a_factor_mean_keeps_the_fifth_law_where_both_sides_are_rescaled_alike(name, case, times):
    alike = replace(case, times=times, divided=times**0.5, more=0)
    assert CHECKS["L5"](Trial(FACTOR_MEANS[name], alike))
