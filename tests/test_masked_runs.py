"""Whole runs with secure aggregation: the same model, bytes of the masked message, rounds that are lost."""

from contextlib import closing
from dataclasses import replace
from math import prod

import pytest
import torch

from fedray import engine
from fedray.assignment import Assignment
from fedray.config import load_config
from fedray.cost import WorkShape
from fedray.engine import play_round
from fedray.errors import ConfigError, PolicyError
from fedray.report import write_report
from fedray.scene import set_scene
from left_run import client_record, leave, round_record
from report_page import Page
from tiny_run import begun, merged, opened, played, save_fleet

MASKS = {"secure_aggregation": {"masks": "pairwise"}}


@pytest.fixture(scope="module")
def leaving(tiny, tmp_path_factory):
    """All eight clients asked, of which some drop out of a round."""
    fleet = save_fleet(tmp_path_factory.mktemp("fleet") / "fleet.csv", availability=[0.7] * 8)
    rounds = {"num_rounds": 2, "clients_per_round": 8}
    sgd = {"optim": "sgd", "learning_rate": 0.1}
    return merged(
        tiny,
        {"fleet": fleet, "dropouts": True, "rounds": rounds, "training": sgd, "aggregation": "coverage_mean"},
    )


def test_a_masked_run_with_mixed_ranks_and_dropouts_is_the_plain_one_to_fixed_point(leaving):
    plain, hidden = played(leaving), played(merged(leaving, MASKS))
    outcomes = [record.outcome for record in hidden.clients]
    assert {"ok", "dropped"} == set(outcomes)
    assert [record.outcome for record in plain.clients] == outcomes
    assert len({record.assignment for record in hidden.clients}) > 1
    left, right = plain.state.adapter.tensors(), hidden.state.adapter.tensors()
    assert all(torch.allclose(left[name], right[name], rtol=0, atol=1e-6) for name in left)
    assert not all(torch.equal(left[name], right[name]) for name in left)


def test_everybody_sends_a_word_for_everything_that_anybody_trains_and_padding_is_told(leaving):
    config = merged(leaving, MASKS)
    scene, _ = begun(config)
    progress = played(config)
    words = sum(prod(tensor.shape) for tensor in progress.state.adapter.tensors().values())
    for record in progress.clients:
        if record.outcome != "ok":
            assert record.padding_bytes == 0
            continue
        # One tensor: a length of 8, a header of 66 letters rounded up to 72, and 4 bytes a word.
        assert record.up_bytes == record.predicted_up_bytes == 4 * words + 8 + 72
        entry = Assignment.from_json(record.assignment)
        plain = scene.tracer(entry, WorkShape(rows=4, tokens=16, attention="eager")).up_bytes
        assert record.padding_bytes == record.up_bytes - plain
    spread = {record.padding_bytes for record in progress.clients if record.outcome == "ok"}
    assert len(spread) > 1


def test_a_round_of_too_few_is_lost_and_says_why(leaving):
    config = merged(leaving, {"secure_aggregation": {"masks": "pairwise", "min_survivors": 0.95}})
    progress = played(config)
    lost = [record for record in progress.rounds if not record.num_ok]
    assert lost
    assert progress.state.version == len(progress.rounds) - len(lost)
    why = {record.message for record in progress.clients if record.outcome == "failed"}
    assert any(message.endswith("came, and 8 must to take the masks away") for message in why)


def test_a_report_says_what_of_the_bytes_is_padding(tmp_path):
    clients = [client_record(1, k, up_bytes=1024 * 1024, padding_bytes=256 * 1024) for k in range(4)]
    folder = leave(tmp_path / "run", [round_record(1, clients, 0.5)], clients, [])
    asked = "secure_aggregation:\n  masks: pairwise\n"
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text() + asked)
    text = Page(write_report(folder).read_text()).text
    assert "of the 4.0 MiB that came up, 1.0 MiB are padding. No client-rounds were lost" in text
    assert "Epsilon" not in text


def test_what_would_show_the_server_more_than_a_sum_is_refused(tiny):
    for changes, sentence in (
        ({"selection": "oort"}, "asks clients for squared_loss, which they send as they are"),
        ({"pace": {"late": "join", "goal": 2}}, "masks cancel among the clients of one"),
        ({"policy": "flexlora"}, "aggregation 'flexlora' is no mean of factors"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            begun(merged(tiny, {**MASKS, **changes}))


class Coded:
    def assign(self, cohort, offers, state):
        return [replace(offers.menu[0], up_codec="int8") for _ in range(len(cohort))], state


def test_a_policy_that_codes_masked_updates_is_refused(tiny):
    config = load_config(merged(tiny, MASKS))
    scene = set_scene(config, engine.CACHE_DIR, Coded)
    _, progress, runtime = opened(merged(tiny, MASKS))
    with closing(runtime), pytest.raises(PolicyError, match="the up_codec int8, and with secure_aggregation"):
        play_round(scene, progress, runtime, 1)
