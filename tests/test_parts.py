"""Assignments that a policy made for another model are answered with a sentence, before anything is run."""

import pytest

from fedray.errors import PolicyError
from tiny_run import merged, played, save_fleet

POLICY = """
from dataclasses import replace
from fedray.assignment import HeadOnly

class Strange:
    def menu(self, view):
        whole = next(entry for entry in view.menu if not entry.split)
        cut = next(entry for entry in view.menu if entry.split)
        return [{entry}]

    def assign(self, cohort, offers, state):
        return offers.best(offers.sum_of_ranks), state
"""


# The tiny model has four blocks, in fp32.
@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (
            "replace(cut, adapter=HeadOnly(), blocks=tuple(range(9)))",
            "cut 9 and tail 0 leave the server none of 4",
        ),
        (
            "replace(cut, adapter=HeadOnly(), blocks=(0, 1, 2), tail=1)",
            "cut 3 and tail 1 leave the server none",
        ),
        ("replace(cut, adapter=replace(cut.adapter, ranks=(2,) * 6))", "its 4 blocks are given 6 ranks"),
        ("replace(cut, adapter=replace(cut.adapter, ranks=(2, 2)))", "its 4 blocks are given 2 ranks"),
        (
            "replace(whole, blocks=tuple(range(6)), adapter=replace(whole.adapter, ranks=(2,) * 6))",
            "block 5 is asked for of 4, counted from 0",
        ),
        (
            "replace(whole, blocks=(0, 7), adapter=replace(whole.adapter, ranks=(2, 2)))",
            "block 7 is asked for of 4, counted from 0",
        ),
        ("replace(cut, dtype='bf16')", "its weights are held in fp32"),
    ],
)
def test_an_assignment_of_another_model_is_refused(tiny, tmp_path, entry, sentence):
    policy = tmp_path / "strange.py"
    policy.write_text(POLICY.replace("{entry}", entry))
    changes = {
        "menu": {"cuts": [1]},
        "policy": str(policy),
        "fleet": {"name": save_fleet(tmp_path / "rich.csv", [4096] * 8)},
    }
    with pytest.raises(PolicyError, match=f"which does not fit this run's model: {sentence}"):
        played(merged(tiny, changes))
