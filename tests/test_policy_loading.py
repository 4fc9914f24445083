"""Policies from files: both forms, their options, and whose mistake it was."""

import numpy as np
import pytest

from fedray.errors import PolicyError
from fedray.policy import Pace, Policy, View
from fedray.policy_loading import adapt_policy, load_policy

FUNCTION = '''
"""The strongest half trains in full, the others as little as they can."""

import numpy as np


def assign(cohort, offers):
    strong = cohort.device.memory_bytes >= np.median(cohort.device.memory_bytes)
    largest = offers.best(offers.sum_of_ranks)
    smallest = offers.best(-offers.sum_of_ranks)
    return np.where(strong, largest, smallest)
'''
CLASS = '''
"""Asks clients in turn."""

from fedray.policy import Pace


class InTurn:
    aggregation = "stack"

    def __init__(self, *, goal=2, key="sum_of_ranks"):
        self.pace = Pace(goal=goal)
        self.key = key

    def select(self, view, state):
        first = state.get("next", 0)
        return [(first + i) % view.num_clients for i in range(view.clients_per_round)]

    def assign(self, cohort, offers, state):
        return offers.best(getattr(offers, self.key)), {"next": int(cohort.client_ids[-1]) + 1}

    def observe(self, records, state):
        return {**state, "rounds": state.get("rounds", 0) + len(records)}
'''
VIEW = View(round=1, seed=3, num_clients=5, clients_per_round=2, menu=())


class Four:
    """In place of a cohort of four and of two offers, the last the larger: what FUNCTION reads of them."""

    device = type("Device", (), {"memory_bytes": np.array([1, 2, 3, 4])})
    sum_of_ranks = np.array([2, 8])
    client_ids = np.array([0, 1, 2, 3])

    def best(self, key):
        return np.full(4, np.argmax(key))


@pytest.fixture
def write(tmp_path):
    def written(text, name="mine.py"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return written


def test_a_ten_line_function_is_a_policy_with_every_default(write):
    policy = load_policy(write(FUNCTION))
    choice, state = policy.assign(Four(), Four(), {"kept": 1})
    assert choice.tolist() == [0, 0, 1, 1]
    assert state == {"kept": 1}
    assert policy.menu(VIEW) == VIEW.menu
    assert policy.select(VIEW, {}).tolist() == VIEW.sample().tolist()
    assert policy.observe([{}], {"kept": 1}) == {"kept": 1}
    assert (policy.name, policy.pace, policy.aggregation) == ("mine", None, None)
    assert isinstance(policy, Policy)


def test_a_class_is_a_policy_with_its_options_and_its_own_methods(write):
    policy = load_policy(write(CLASS), {"goal": 7})
    assert policy.pace == Pace(goal=7)
    assert policy.aggregation == "stack"
    choice, state = policy.assign(Four(), Four(), {})
    assert choice.tolist() == [1, 1, 1, 1]
    assert policy.select(VIEW, state) == [4, 0]
    assert policy.observe([{}, {}], state) == {"next": 4, "rounds": 2}
    assert policy.menu(VIEW) == VIEW.menu


def test_an_aggregation_interval_is_a_number_of_rounds(write):
    policy = load_policy(write("aggregation_interval = 5\n" + FUNCTION))
    assert policy.aggregation_interval == 5
    assert load_policy(write(FUNCTION)).aggregation_interval is None
    with pytest.raises(PolicyError, match=r"aggregation_interval is 1 round or more, not 0"):
        load_policy(write("aggregation_interval = 0\n" + FUNCTION))
    with pytest.raises(PolicyError, match=r"aggregation_interval is a int or absent, not '5'"):
        load_policy(write("aggregation_interval = '5'\n" + FUNCTION))


def test_a_file_of_the_function_form_may_declare_pace_and_aggregation(write):
    policy = load_policy(
        write('from fedray.policy import Pace\naggregation = "stack"\npace = Pace(goal=3)\n' + FUNCTION)
    )
    assert (policy.aggregation, policy.pace) == ("stack", Pace(goal=3))


def test_a_name_that_a_function_file_imports_is_not_its_method(write):
    policy = load_policy(write("from operator import eq as select\n" + FUNCTION))
    assert policy.select(VIEW, {}).tolist() == VIEW.sample().tolist()


def test_a_function_takes_its_options_by_keyword(write):
    path = write("def assign(cohort, offers, *, entry, off=0):\n    return [entry + off]\n")
    assert load_policy(path, {"entry": 4}).assign(None, None, {}) == ([4], {})
    assert load_policy(path, {"entry": 4, "off": 1}).assign(None, None, {}) == ([5], {})


def test_a_function_may_take_the_state(write):
    path = write("def assign(cohort, offers, state):\n    return [0], {'n': state.get('n', 0) + 1}\n")
    assert load_policy(path).assign(None, None, {"n": 1}) == ([0], {"n": 2})


def test_a_class_that_inherits_the_protocol_keeps_the_defaults(write):
    path = write(
        "from fedray.policy import Policy\n\n\nclass Mine(Policy):\n"
        "    def assign(self, cohort, offers, state):\n        return [0], state\n"
    )
    policy = load_policy(path)
    assert policy.select(VIEW, {}).tolist() == VIEW.sample().tolist()
    assert policy.observe([], {"kept": 1}) == {"kept": 1}


def test_a_policy_may_define_dataclasses_and_two_files_of_one_name_stay_apart(write, tmp_path):
    text = (
        "from dataclasses import dataclass\n\n\n@dataclass(frozen=True)\nclass Entry:\n    row: int\n\n\n"
        "def assign(cohort, offers):\n    return [Entry({row}).row]\n"
    )
    (tmp_path / "other").mkdir()
    first = load_policy(write(text.replace("{row}", "1")))
    second = load_policy(write(text.replace("{row}", "2"), "other/mine.py"))
    assert first.assign(None, None, {})[0] == [1]
    assert second.assign(None, None, {})[0] == [2]


def test_a_notebook_may_pass_a_function_a_class_or_an_object():
    def only_first(cohort, offers, *, entry=0):
        return [entry]

    class Object:
        def __init__(self, *, entry=0):
            self.entry = entry

        def assign(self, cohort, offers):
            return [self.entry]

    assert adapt_policy(only_first).assign(None, None, {})[0] == [0]
    assert adapt_policy(only_first, {"entry": 3}).assign(None, None, {})[0] == [3]
    assert adapt_policy(Object, {"entry": 3}).assign(None, None, {})[0] == [3]
    assert adapt_policy(Object(entry=2)).assign(None, None, {})[0] == [2]
    assert adapt_policy(only_first).name == "only_first"
    with pytest.raises(PolicyError, match="already made: give entry to its class"):
        adapt_policy(Object(), {"entry": 3})
    with pytest.raises(PolicyError, match="found 5"):
        adapt_policy(5)
    with pytest.raises(PolicyError, match="no method assign"):
        adapt_policy(int)


def test_what_the_policys_own_code_raises_names_its_file_and_line(write):
    path = write("def assign(cohort, offers):\n    menu = [1]\n    return menu[4]\n")
    with pytest.raises(
        PolicyError, match=r"Policy 'mine' failed in assign at .*mine\.py:3: IndexError: list"
    ) as error:
        load_policy(path).assign(None, None, {})
    assert isinstance(error.value.__cause__, IndexError)


def test_the_line_is_the_policys_even_if_a_library_raised(write):
    path = write(
        "import numpy as np\n\n\ndef assign(cohort, offers):\n    return np.zeros(3) @ np.zeros(4)\n"
    )
    with pytest.raises(PolicyError, match=r"mine\.py:5: ValueError"):
        load_policy(path).assign(None, None, {})


@pytest.mark.parametrize("method", ["menu", "select", "observe"])
def test_every_method_is_blamed_by_its_name(write, method):
    path = write(
        f"class Mine:\n    def assign(self, cohort, offers):\n        return []\n\n"
        f"    def {method}(self, *inputs):\n        return 1 / 0\n"
    )
    inputs = {"menu": (VIEW,), "select": (VIEW, {}), "observe": ([], {})}[method]
    with pytest.raises(PolicyError, match=rf"failed in {method} at .*mine\.py:6: ZeroDivisionError"):
        getattr(load_policy(path), method)(*inputs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def assign(cohort, offers)\n    return []\n", r"failed in its import at .*mine\.py:1: SyntaxError"),
        ("import no_such_module_anywhere\n", r"mine\.py:1: ModuleNotFoundError"),
        ("x = 1\n", "must hold one policy, .* found nothing of the kind"),
        (FUNCTION + CLASS.replace('"""Asks clients in turn."""', ""), "found InTurn, assign"),
        ("def assign(cohort):\n    return []\n", "found 1 positional"),
        (
            "def assign(cohort, offers, share, other):\n    return []\n",
            r"by keyword only .* found 4 positional",
        ),
        (CLASS.replace('"stack"', "7"), "aggregation is a str or absent, not 7"),
        (CLASS.replace("Pace(goal=goal)", "goal"), "pace is a Pace or absent, not 2"),
        (
            CLASS.replace("goal=2", "goal=0"),
            r"failed in __init__ at .*mine\.py:11: pace.goal must be at least 1",
        ),
    ],
)
def test_a_file_that_is_no_policy_is_refused(write, text, message):
    with pytest.raises(PolicyError, match=message):
        load_policy(write(text))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (CLASS, {"gaol": 3}, "Policy 'mine' has no option 'gaol'; it takes goal, key. Did you mean 'goal'?"),
        (FUNCTION, {"share": 3}, "Policy 'mine' has no option 'share'; it takes none."),
        (FUNCTION, {"cohort": 3}, "has no option 'cohort'"),
        (
            "def assign(cohort, offers, *, entry):\n    return []\n",
            {},
            "needs the option 'entry'; it takes entry",
        ),
    ],
)
def test_a_wrong_option_is_answered_with_the_right_ones(write, text, options, message):
    with pytest.raises(PolicyError) as error:
        load_policy(write(text), options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("result", "message"),
    [("[0]", "returns \\(choice, state\\)"), ("([0], 3)", "found tuple"), ("([0], {}, 1)", "found tuple")],
)
def test_an_assign_with_state_returns_the_state(write, result, message):
    path = write(f"def assign(cohort, offers, state):\n    return {result}\n")
    with pytest.raises(PolicyError, match=message):
        load_policy(path).assign(None, None, {})


def test_an_observe_that_forgets_to_return_is_told(write):
    path = write(CLASS.replace("return {**state", "state = {**state"))
    with pytest.raises(PolicyError, match="observe returns the state, a mapping; found NoneType"):
        load_policy(path).observe([], {})


def test_an_unknown_name_is_answered_with_the_shipped_ones(repository):
    folders = (repository / "policies", repository / "policies" / "unverified")
    shipped = sorted(path.stem for folder in folders for path in folder.glob("[a-z]*.py"))
    assert {"drop_weak", "legend_style"} <= set(shipped)
    with pytest.raises(PolicyError) as error:
        load_policy("drop_week")
    assert str(error.value) == (
        f"No policy is named 'drop_week'; shipped are {', '.join(shipped)}, or give a path. Did you mean "
        "'drop_weak'?"
    )


def test_a_path_that_is_not_there_is_said():
    with pytest.raises(PolicyError, match=r"No policy at 'nowhere/mine\.py': there is no such file"):
        load_policy("nowhere/mine.py")
