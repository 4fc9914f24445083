"""Taps: they hear all that the server receives and sends, and change no bit of a run."""

from collections import Counter

import pytest
import torch

import fedray
from fedray.adapter import applied
from fedray.aggregation.secure_sum import MASKED
from fedray.training.tap import Tap
from tiny_run import assert_same_adapter, merged, played

CUTS = {
    "menu": {"ranks": [2], "depths": ["all"], "cuts": [1, 2], "tails": [0, 1]},
    "rounds": {"num_rounds": 1, "clients_per_round": 8},
}


class Listener(Tap):
    """Keeps what it heard."""

    def __init__(self):
        self.updates, self.crossings = [], []

    def update(self, job, update):
        self.updates.append((job, update))

    def crossed(self, job, crossing):
        self.crossings.append((job, crossing))


class Scribbler(Tap):
    """Writes over everything it is shown."""

    def update(self, job, update):
        shown = [update.tensors(), job.sent.tensors(), update.client_state]
        shown += [] if update.delta is None else [update.delta.tensors()]
        for tensor in [tensor for tensors in shown for tensor in tensors.values()]:
            tensor.zero_()

    def crossed(self, job, crossing):
        if crossing.message.states is not None:
            for tensor in crossing.message.states.tensors.values():
                tensor.zero_()


@pytest.fixture(scope="module")
def cut(tiny):
    return merged(tiny, CUTS)


def test_a_tap_that_writes_over_all_it_sees_changes_no_bit(tiny, cut):
    coded = merged(tiny, {"menu": {"up_codecs": ["top10"]}, "rounds": {"num_rounds": 2}})
    for config in (cut, coded):
        alone, tapped = played(config), played(config, [Scribbler(), Listener()])
        assert_same_adapter(alone.state.adapter, tapped.state.adapter)
        assert [c.boundary_up_bytes for c in alone.clients] == [c.boundary_up_bytes for c in tapped.clients]


def test_every_message_is_heard_once_and_its_bytes_are_those_of_the_records(cut):
    heard = Listener()
    progress = played(cut, [heard])
    up, down = Counter(), Counter()
    for job, crossing in heard.crossings:
        into = up if crossing.passing.endswith("up") else down
        into[job.client_id] += crossing.message.num_bytes
    for record in progress.clients:
        # Beside messages the squared norms of gradients go up, where both sides clip as one: a number a step.
        assert 0 <= record.boundary_up_bytes - up[record.client_id] <= 4 * 16
        assert record.boundary_down_bytes == down[record.client_id]
    kinds = {(bool(job.assignment.tail), crossing.passing) for job, crossing in heard.crossings}
    assert {(False, "states_up"), (False, "gradient_down")} <= kinds
    assert (False, "states_down") not in kinds
    assert [update.client_id for _, update in heard.updates if update.delta is None] == []


def test_one_clients_update_is_what_moves_the_state_where_it_is_alone(tiny):
    heard = Listener()
    alone = {"rounds": {"num_rounds": 1, "clients_per_round": 1}, "aggregation": "coverage_mean"}
    progress = played(merged(tiny, {**alone, "menu": {"ranks": [4], "depths": ["all"]}}), [heard])
    ((job, update),) = heard.updates
    after = applied(job.sent, update.delta).tensors()
    state = progress.state.adapter.tensors()
    assert all(torch.allclose(state[name], tensor, atol=1e-6) for name, tensor in after.items())


def test_under_masks_a_tap_sees_masked_words_and_no_update(tiny):
    heard = Listener()
    played(merged(tiny, {"secure_aggregation": {"masks": "pairwise"}, "rounds": {"num_rounds": 1}}), [heard])
    assert all(set(update.tensors()) == {MASKED} for _, update in heard.updates)


def test_a_run_and_its_end_after_an_interruption_take_taps(tiny, tmp_path):
    heard, later = Listener(), Listener()
    config = merged(tiny, {"rounds": {"num_rounds": 1}})
    fedray.run(config, out=tmp_path / "run", taps=[heard])
    assert {job.round for job, _ in heard.updates} == {1}
    text = (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(text.replace("num_rounds: 1", "num_rounds: 2"))
    fedray.resume(tmp_path / "run", taps=[later])
    assert {job.round for job, _ in later.updates} == {2}
