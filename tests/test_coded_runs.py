"""Whole runs whose updates and starts are sent coded: bytes, what is owed, and going on after an end."""

from contextlib import closing
from dataclasses import replace

import pytest

from fedray import checkpoint
from fedray.assignment import Assignment
from fedray.config import load_config
from fedray.cost import WorkShape
from fedray.engine import play_round, run
from fedray.errors import ConfigError
from fedray.report.coverage import lost_by_codec
from tiny_run import assert_same_adapter, assert_same_tensors, begun, merged, opened, played, save_fleet


def coded(tiny, up, down, **changes):
    return merged(tiny, {"menu": {"up_codecs": up, "down_codecs": down}, **changes})


@pytest.mark.parametrize(
    ("up", "down"), [("int8", "bf16"), ("int4", "top10"), ("top10", "int8"), ("rank1", "none")]
)
def test_counted_bytes_are_the_predicted_ones_and_fewer_than_without_a_codec(tiny, up, down, tmp_path):
    fleet = save_fleet(tmp_path / "rich.csv", [4096] * 8)
    sizes = {"fleet": {"name": fleet}, "rounds": {"num_rounds": 2}, "audit": {"share": 0.5}}
    scene, _ = begun(coded(tiny, [up], [down], **sizes))
    assert {(entry.up_codec, entry.down_codec) for entry in scene.menu} == {(up, down)}
    for record in played(coded(tiny, [up], [down], **sizes)).clients:
        assert record.outcome == "ok"
        assert record.up_bytes == record.predicted_up_bytes
        assert record.down_bytes == record.predicted_down_bytes
        entry = Assignment.from_json(record.assignment)
        shape = WorkShape(rows=4, tokens=16, attention="eager")
        plain = scene.footprint(replace(entry, up_codec="none", down_codec="none"), shape)
        assert record.up_bytes < plain.up_bytes
        assert (record.down_bytes < plain.down_bytes) is (down != "none")
        if record.measured_peak_bytes is not None:
            assert record.measured_peak_bytes == pytest.approx(record.predicted_peak_bytes, rel=0.02)


def test_with_a_free_choice_of_codecs_the_fastest_of_equals_is_taken(tiny):
    # The link is the slow part, so fewer bytes are less time at the same sum of ranks.
    result = played(coded(tiny, ["none", "int4"], ["none", "int8"], rounds={"num_rounds": 1}))
    assert all('"up_codec": "int4", "down_codec": "int8"' in record.assignment for record in result.clients)


def test_a_run_that_owes_goes_on_from_its_checkpoint_as_if_it_had_never_ended(tiny, tmp_path):
    scene, whole, runtime = opened(coded(tiny, ["top10"], ["int4"]))
    _, parts = begun(coded(tiny, ["top10"], ["int4"]))
    with closing(runtime):
        for number in (1, 2, 3):
            play_round(scene, whole, runtime, number)
        for number in (1, 2):
            play_round(scene, parts, runtime, number)
        checkpoint.save(tmp_path, parts)
        again = checkpoint.load(tmp_path)
        assert {name.split(".")[0] for owed in again.client_states.values() for name in owed} == {"owed"}
        play_round(scene, again, runtime, 3)
    assert_same_adapter(again.state.adapter, whole.state.adapter)
    # Five of eight clients a round: some of the third owed something from before.
    assert again.client_states.keys() == whole.client_states.keys()
    for client, owed in whole.client_states.items():
        assert_same_tensors(again.client_states[client], owed)


@pytest.mark.parametrize(
    ("rule", "menu", "sentence"),
    [
        ("flexlora", {"down_codecs": ["int8"]}, "down_codec int8 .* aggregation 'flexlora' averages"),
        ("flora", {"up_codecs": ["none", "top10"]}, "up_codec top10 .* aggregation 'flora' gives"),
        ("factor_mean", {"up_codecs": ["rank64"]}, "menu.up_codecs lists rank64"),
        ("factor_mean", {"up_codecs": ["int3"]}, "up_codec is one of none, .* found 'int3'"),
    ],
)
def test_codecs_that_a_run_cannot_have_are_refused_before_it_starts(tiny, rule, menu, sentence, tmp_path):
    with pytest.raises(ConfigError, match=sentence):
        run(load_config(merged(tiny, {"aggregation": rule, "menu": menu})), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_codecs_cost_is_measured_beside_a_run_and_changes_nothing_of_it(tiny, tmp_path):
    fleet = save_fleet(tmp_path / "rich.csv", [4096] * 8)
    same = {
        "fleet": fleet,
        "rounds": {"num_rounds": 2, "clients_per_round": 4},
        "menu": {"ranks": [4], "depths": ["all"]},
    }
    coded = {**same, "menu": {**same["menu"], "up_codecs": ["int4"]}}
    plain, alone, audited = (
        played(merged(tiny, {**changes, "audit": {"distinct": False, **audit}}))
        for changes, audit in ((same, {}), (coded, {}), (coded, {"codecs": True}))
    )
    # The first round starts from the same state: its updates uncoded make what a run without codecs makes.
    assert audited.rounds[0].plain_loss == plain.rounds[0].loss
    assert audited.rounds[0].plain_accuracy == plain.rounds[0].accuracy
    assert audited.rounds[0].plain_loss != audited.rounds[0].loss
    assert [(r.loss, r.up_bytes) for r in audited.rounds] == [(r.loss, r.up_bytes) for r in alone.rounds]
    assert {r.plain_loss for r in alone.rounds} == {None}
    assert audited.rounds[1].plain_loss not in (None, plain.rounds[1].loss)
    page = lost_by_codec(audited.rounds, audited.clients)
    assert "Accuracy lost to codecs in round 2 alone" in page
    assert "audit.codecs: true measures round by round" in lost_by_codec(alone.rounds, alone.clients)
