"""Policies that do what they may not: each is found out, with a case to look at; the shipped ones pass."""

import itertools
import re

import numpy as np
import pytest

from fedray.errors import PolicyError
from fedray.policy_file import named_files
from fedray.shipped import shipped
from fedray.testing import check_policy

OPTIONS = {"within_deadline": {"deadline_seconds": 30.0}}
SHIPPED = sorted(named_files(shipped("policies")))


def largest(cohort, offers):
    return offers.best(offers.sum_of_ranks)


def the_last(cohort, offers):
    return np.full(len(cohort), len(offers.menu) - 1)


CALLS = itertools.count()


def by_the_clock(cohort, offers):
    return offers.best(offers.sum_of_ranks * (-1) ** next(CALLS))


def beyond_the_menu(cohort, offers):
    return np.full(len(cohort), len(offers.menu))


def at_no_price(cohort, offers):
    offers.virtual_seconds[:] = 0.0
    return offers.best(offers.sum_of_ranks)


class InTurns:
    def __init__(self):
        self.rounds = 0

    def assign(self, cohort, offers):
        self.rounds += 1
        return offers.best(offers.sum_of_ranks * (-1) ** self.rounds)


class WithASet:
    def assign(self, cohort, offers, state):
        return offers.best(offers.sum_of_ranks), {"seen": set(cohort.client_ids.tolist())}


class Nobody:
    def select(self, view, state):
        return []

    def assign(self, cohort, offers):
        return offers.best(offers.sum_of_ranks)


def second_client(cohort, offers):
    assert cohort.client_ids[1] >= 0
    return offers.best(offers.sum_of_ranks)


def never(cohort, offers):
    raise PolicyError("never takes no menu; give another.")


def only_cuts(cohort, offers):
    offers.need_cuts("only_cuts")
    return offers.best(offers.sum_of_ranks)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_policy_passes(name):
    report = check_policy(name, OPTIONS.get(name), examples=6)
    assert report.passed, report.to_text()


@pytest.mark.parametrize(
    ("policy", "check", "sentence"),
    [
        (the_last, "memory", r"gave client \d \(phone\) an assignment that does not fit: .* needs \d+ B"),
        (by_the_clock, "determinism", r"the same inputs get two answers: round \d gives client \d .* and "),
        (beyond_the_menu, "contract", r"the menu index \d+; the menu has \d+ entries"),
        (at_no_price, "contract", r"assign writes into offers\.virtual_seconds, which it was given to read"),
        (InTurns, "contract", r"resumed from its checkpoint decides otherwise, .* round \d gives client"),
        (WithASet, "contract", r"state\['seen'\] is a set"),
        (Nobody, "contract", r"select chose nobody for round 1"),
        (second_client, "robustness", r"failed in assign at .*test_policies\.py:\d+: IndexError"),
    ],
)
def test_what_a_policy_may_not_do_is_found_with_a_case_that_shows_it(policy, check, sentence):
    report = check_policy(policy, examples=4)
    failed = [finding for finding in report.findings if not finding.passed]
    assert [finding.name for finding in failed] == [check], report.to_text()
    [finding] = failed
    assert re.search(sentence, finding.sentence), finding.sentence
    assert finding.case.startswith("client 0: ")
    assert "Menu: 0: " in finding.case
    assert (report.passed, report.rung) == (False, "none")


def test_a_policy_that_takes_some_menus_only_passes_and_the_others_are_counted():
    report = check_policy(only_cuts, examples=4)
    assert report.passed, report.to_text()
    use = report.findings[-1]
    assert "it refuses" in use.sentence
    assert use.sentence.endswith("none of the menu's 2 assignments has one; give menu.cuts.")


def test_a_policy_that_takes_nothing_at_all_fails():
    report = check_policy(never, examples=4)
    assert not report.passed
    assert report.findings[-1].sentence.startswith("gives nobody anything on ")
    assert report.findings[-1].sentence.endswith("as in: never takes no menu; give another.")


def test_the_same_check_says_the_same_again():
    assert check_policy(the_last, examples=4) == check_policy(the_last, examples=4)
