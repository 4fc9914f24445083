"""The rule of a run: what a configuration and its policy come to, and what that asks of the clients' work."""

import pytest

from fedray.aggregation.chosen import choose_rule
from fedray.config import load_config
from fedray.errors import ConfigError, PolicyError
from tiny_run import merged, played


@pytest.mark.parametrize(
    ("aggregation", "asked", "trains_a"),
    [
        ("auto", None, True),
        ("ffa_lora", None, False),
        ("ffa_lora", False, False),
        ("fedit", False, False),
        ("hetlora", True, True),
        ("fedex_lora", False, False),
    ],
)
def test_a_is_trained_as_the_rule_needs_unless_the_menu_says(aggregation, asked, trains_a):
    config = load_config({"aggregation": aggregation, "menu": {"train_lora_a": asked}})
    assert choose_rule(config, None).trains_a is trains_a


def test_the_policys_rule_may_leave_a_untrained():
    assert not choose_rule(load_config({}), "ffa_lora").trains_a


@pytest.mark.parametrize(
    ("aggregation", "asked", "sentence"),
    [
        ("ffa_lora", True, "averages B over one A that nobody trains, and menu.train_lora_a is true"),
        ("flexlora", False, "aggregation 'flexlora' gives clients another A every round; drop it"),
        ("flora", False, "aggregation 'flora' gives clients another A every round; drop it"),
    ],
)
def test_a_menu_and_a_rule_that_disagree_about_a_are_refused(aggregation, asked, sentence):
    config = load_config({"aggregation": aggregation, "menu": {"train_lora_a": asked}})
    with pytest.raises(ConfigError, match=sentence):
        choose_rule(config, None)


def test_leaving_a_untrained_has_no_effect_without_ranks():
    with pytest.raises(ConfigError, match=r"menu.train_lora_a has no effect without menu\.ranks"):
        load_config({"menu": {"ranks": [], "head_only": True, "train_lora_a": False}})


def test_a_policy_whose_own_assignments_train_another_a_than_the_run_is_refused(tiny, tmp_path):
    policy = tmp_path / "both.py"
    policy.write_text(
        "from dataclasses import replace\n"
        "class Both:\n"
        "    aggregation = 'ffa_lora'\n"
        "    def menu(self, view):\n"
        "        return [replace(e, adapter=replace(e.adapter, train_a=True)) for e in view.menu]\n"
        "    def assign(self, cohort, offers):\n"
        "        return offers.best(offers.sum_of_ranks)\n"
    )
    with pytest.raises(PolicyError, match=r"train_a = True, and in this run nobody trains A; make it from"):
        played(merged(tiny, {"policy": str(policy)}))


@pytest.mark.parametrize("mode", ["replica", "shared"])
def test_a_round_under_cuts_leaves_a_as_it_was_drawn_on_both_sides(tiny, mode):
    changes = {
        "aggregation": "ffa_lora",
        "menu": {"ranks": [2, 4], "depths": ["all"], "cuts": [1, 2]},
        "server": {"mode": mode},
        "policy": {"name": "deepest_cut", "options": {"prefer": "shallowest"}},
        "rounds": {"num_rounds": 1},
    }
    progress = played(merged(tiny, changes))
    assert {(record.outcome, record.cut) for record in progress.clients} == {("ok", 1)}
    for record in progress.clients:
        assert record.up_bytes == record.predicted_up_bytes == record.down_bytes
        if record.measured_peak_bytes is not None:
            assert record.measured_peak_bytes == pytest.approx(record.predicted_peak_bytes, rel=0.02)
    factors = progress.state.adapter.factors.values()
    assert all(f.b.any() and not f.train_a for f in factors)
