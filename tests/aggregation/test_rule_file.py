"""A user's own rule from a file, in a run and refused."""

import pytest
import torch

from fedray.aggregation.presets import make_aggregation
from fedray.errors import ConfigError
from tiny_run import merged, played

MINE = '''
"""The plain mean of the factors, over those that hold a rank index."""
from dataclasses import dataclass
from fedray.aggregation.factor_mean import FactorMean
from fedray.aggregation.rule import Aggregation

@dataclass(frozen=True, kw_only=True)
class Mine(Aggregation):
    form: str = "delta"
    transforms: tuple = ()
    name = "mine"
    breaks = frozenset({"L5", "L6"})

    def send(self, state, ranks, seed):
        return self._rule().send(state, ranks, seed)

    def start(self, state):
        return self._rule().start(state)

    def _rule(self):
        return FactorMean(mode="dimension", form=self.form, transforms=self.transforms)
'''


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "mine.py"
        path.write_text(text)
        return str(path)

    return write


def test_a_rule_in_a_file_runs_as_the_one_it_is_like(tiny, write):
    shorter = {"rounds": {"num_rounds": 2, "clients_per_round": 3}}
    section = {"name": write(MINE), "options": {"form": "state"}, "clip_norm": 0.5}
    mine = played(merged(tiny, {**shorter, "aggregation": section}))
    rbla = played(merged(tiny, {**shorter, "aggregation": {"name": "rbla", "clip_norm": 0.5}}))
    ours, theirs = mine.state.adapter.tensors(), rbla.state.adapter.tensors()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_a_rule_does_not_say_has_the_usual_answers(write):
    rule = make_aggregation(write(MINE))
    assert (rule.exact, rule.lossy) == (False, False)
    assert (rule.keeps_rank_indices, rule.moves_base, rule.freezes_a) == (True, False, False)


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        ("1 / 0", {}, "does not run: ZeroDivisionError"),
        ("class Mine: ...", {}, r"inherits from fedray\.aggregation\.rule\.Aggregation; .* holds none"),
        (MINE + MINE.replace("Mine", "Yours"), {}, "holds Mine, Yours"),
        (MINE, {"mode": "state"}, "Mine in .* has no option 'mode'; it has form"),
        (MINE.replace('form: str = "delta"', "form: str"), {}, "cannot be made with {}"),
        (MINE.replace("    transforms: tuple = ()\n", ""), {"clip_norm": 1.0}, "takes no transforms"),
    ],
)
def test_a_file_or_an_option_that_is_none_is_refused(write, text, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make_aggregation(write(text), options)


def test_a_path_that_is_not_there_is_said():
    with pytest.raises(ConfigError, match=r"No aggregation rule at 'nowhere/mine\.py'"):
        make_aggregation("nowhere/mine.py")
