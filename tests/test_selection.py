"""Selections from files: both forms, what goes with which policy, mistakes named; and whole runs with one."""

import numpy as np
import pytest

from fedray import checkpoint
from fedray.config import load_config
from fedray.engine import play_round
from fedray.errors import ConfigError, FedrayError, PolicyError
from fedray.policy import Pace, View
from fedray.policy_loading import load_policy
from fedray.scene import set_scene
from fedray.selection import load_selection, selected_by
from tiny_run import assert_same_adapter, merged, opened, played

VIEW = View(round=1, seed=0, num_clients=9, clients_per_round=3, menu=())
FUNCTION = "def select(view, *, first=0): return list(range(first, first + view.clients_per_round))\n"
CLASS = """
from fedray.policy import Pace

class InTurn:
    pace = Pace(goal=2)
    observables = {"fisher"}

    def __init__(self, *, step=1):
        self.step = step

    def select(self, view, state):
        at = state.get("at", 0)
        return [at % view.num_clients], {**state, "at": at + self.step}

    def observe(self, records, state):
        return {**state, "seen": state.get("seen", 0) + len(records)}
"""


@pytest.fixture
def write(tmp_path):
    def written(text, name="mine.py"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return written


def test_a_selection_is_a_function_with_options(write):
    selection = load_selection(write(FUNCTION), {"first": 2})
    assert selection.select(VIEW, {"kept": 1}) == ([2, 3, 4], {"kept": 1})
    assert selection.observe([{}], {"kept": 1}) == {"kept": 1}
    assert (selection.name, selection.pace, selection.observables) == ("mine", None, frozenset())


def test_a_selection_is_a_class_that_remembers_apart_from_the_policy(write):
    policy = selected_by(load_selection(write(CLASS), {"step": 4}), load_policy("largest_that_fits"))
    assert (policy.pace, policy.observables) == (Pace(goal=2), ("fisher",))
    assert policy.name == "largest_that_fits selected by mine"
    ids, state = policy.select(VIEW, {"assignment": {"own": 7}})
    ids, state = policy.select(VIEW, policy.observe([{}, {}], state))
    assert (ids, state) == ([4], {"selection": {"at": 8, "seen": 2}, "assignment": {"own": 7}})


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, r"must hold one selection, a function select\(view\) or a class .* nothing of the kind"),
        ("def select(view, state, more): ...", {}, r"select takes \(view\) or \(view, state\), and options"),
        (FUNCTION, {"frist": 1}, r"Selection 'mine' has no option 'frist'; .* Did you mean 'first'\?"),
        ("class A:\n observables = {'loss'}\n def select(self, view): ...", {}, r"asks clients for 'loss'"),
        (
            "import nowhere_at_all",
            {},
            r"Selection 'mine' failed in its import at .*mine.py:1: ModuleNotFound",
        ),
    ],
)
def test_a_file_that_is_no_selection_is_a_sentence(write, text, options, message):
    with pytest.raises(PolicyError, match=message):
        load_selection(write(text), options)


def test_what_a_selections_own_code_raises_says_where(write):
    text = "class A:\n def select(self, view): return 1 / 0\n def observe(self, records, state): return 3\n"
    selection = load_selection(write(text))
    with pytest.raises(PolicyError, match=r"failed in select at .*mine.py:2: ZeroDivisionError"):
        selection.select(VIEW, {})
    with pytest.raises(PolicyError, match=r"observe returns the state, a mapping; found int"):
        selection.observe([], {})


def test_a_policy_that_chooses_clients_itself_takes_no_selection(write):
    own = "class P:\n def select(self, view, state): ...\n def assign(self, cohort, offers): ...\n"
    with pytest.raises(
        ConfigError, match=r"selection: uniform has no effect with the policy 'own', which ch"
    ):
        selected_by(load_selection("uniform"), load_policy(write(own, "own.py")))


def test_a_selection_and_a_policy_do_not_both_set_the_pace(write):
    own = "from fedray.policy import Pace\npace = Pace(goal=1)\ndef assign(cohort, offers): ...\n"
    with pytest.raises(ConfigError, match=r"'mine' and the policy 'own' both say when a round closes"):
        selected_by(load_selection(write(CLASS)), load_policy(write(own, "own.py")))


def test_a_pace_of_the_selection_and_one_of_the_configuration_are_refused(tiny, write):
    with pytest.raises(ConfigError, match=r"pace.goal has no effect with the policy .*, which sets the pace"):
        set_scene(load_config(merged(tiny, {"selection": write(CLASS), "pace": {"goal": 1}})), None)


def test_a_view_without_profiles_says_so_and_knows_its_clients():
    with pytest.raises(PolicyError, match=r"offers was asked about client 9; ids are 0 to 8"):
        VIEW.offers([9])
    with pytest.raises(PolicyError, match=r"made without prices"):
        VIEW.offers([0])
    with pytest.raises(PolicyError, match=r"made without profiles"):
        VIEW.cohort([0])


# Whole runs.


def test_squared_losses_are_refused_above_a_cut(tiny):
    with pytest.raises(ConfigError, match=r"asks clients for squared_loss, and above a cut no client knows"):
        set_scene(load_config(merged(tiny, {"selection": "oort", "menu": {"cuts": [1]}})), None)


def test_the_selection_chooses_and_the_policy_gives(tiny, write):
    config = {"selection": {"name": write(FUNCTION), "options": {"first": 2}}, "policy": "everybody_smallest"}
    result = played(merged(tiny, {**config, "rounds": {"num_rounds": 1}}))
    assert [record.client_id for record in result.clients] == [2, 3, 4, 5, 6]
    assert len({record.assignment for record in result.clients}) == 1


def test_offers_that_a_selection_sees_are_those_that_the_round_gives(tiny, write):
    text = (
        "class A:\n def select(self, view, state):\n  offers = view.offers([1, 6])\n"
        "  return [1, 6], {'seconds': offers.seconds_of(offers.best(offers.sum_of_ranks))}\n"
    )
    result = played(merged(tiny, {"selection": write(text), "rounds": {"num_rounds": 1}}))
    seconds = result.policy_state["selection"]["seconds"]
    assert [record.virtual_seconds for record in result.clients] == pytest.approx(seconds.tolist())


@pytest.mark.parametrize("name", ["oort", "tifl", "power_of_choice", "pyramidfl_style"])
def test_a_run_resumed_from_its_checkpoint_selects_as_one_unbroken(tiny, tmp_path, name):
    options = {"num_tiers": 2, "interval": 1} if name == "tifl" else {}
    config = merged(
        tiny, {"selection": {"name": name, "options": options}, "rounds": {"clients_per_round": 3}}
    )
    unbroken = played(config)
    scene, progress, runtime = opened(config)
    try:
        play_round(scene, progress, runtime, 1)
        checkpoint.save(tmp_path, progress)
        progress = checkpoint.load(tmp_path)
        for number in (2, 3):
            play_round(scene, progress, runtime, number)
    finally:
        runtime.close()
    assert_same_adapter(progress.state.adapter, unbroken.state.adapter)
    assert [r.client_id for r in progress.clients] == [r.client_id for r in unbroken.clients]
    assert _plain(progress.policy_state) == _plain(unbroken.policy_state)


def test_a_selection_that_is_not_there_is_a_sentence(tiny):
    with pytest.raises(FedrayError, match=r"No selection is named 'ort'; .* Did you mean 'oort'\?"):
        set_scene(load_config(merged(tiny, {"selection": "ort"})), None)


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value
