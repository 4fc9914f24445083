"""Every client alone, and all rows in one place: what they train and cost, and where they cannot stand."""

from typing import Any

import numpy as np
import pytest

from fedray.assignment import Assignment
from fedray.comparison.contest import Finished, rows_of
from fedray.comparison.entrants import Entrant, Trial
from fedray.comparison.yardsticks import BYTES_A_TOKEN, can_stand, play_yardstick
from fedray.config import load_config
from fedray.report.reading import Run, read_run
from fedray.scene import set_scene
from tiny_run import merged

SMALL = {
    "rounds": {"num_rounds": 6, "clients_per_round": 4},
    "data": {"per_client": True, "unseen_clients": 1},
    "training": {"learning_rate": 3e-2},
    "policy": "largest_that_fits",
}


@pytest.fixture(scope="module")
def config(tiny: dict[str, Any]) -> Any:
    return load_config(merged(tiny, SMALL))


@pytest.fixture(scope="module")
def both(config: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    out = tmp_path_factory.mktemp("yardsticks")
    for kind in ("local_only", "centralised"):
        play_yardstick(kind, config, out / kind)
    return {kind: read_run(out / kind) for kind in ("local_only", "centralised")}


def test_alone_every_client_trains_as_often_as_one_is_asked_on_average_and_sends_nothing(both):
    run = both["local_only"]
    # Four of seven clients in each of six rounds: three rounds for each.
    assert [record.num_ok for record in run.rounds] == [7, 7, 7]
    assert {record.up_bytes + record.down_bytes for record in run.clients} == {0}
    frozen = [record.provision_bytes for record in run.clients]
    assert min(frozen[:7]) > 0
    assert max(frozen[7:]) == 0
    assert all(record.predicted_peak_bytes <= record.memory_bytes for record in run.clients)


def test_alone_a_client_goes_on_from_what_it_had(both):
    by_round = [np.mean([r.loss for r in both["local_only"].clients if r.round == n]) for n in (1, 2, 3)]
    assert by_round[0] > by_round[1] > by_round[2]


def test_alone_everybody_is_evaluated_on_its_own_test_rows(both, config):
    scene = set_scene(config, None)
    own = {r.client_id: r.num_rows for r in both["local_only"].evaluations}
    assert own == {c: len(rows) for c, rows in enumerate(scene.partitions.test_of) if len(rows)}


def test_in_one_place_a_device_takes_the_steps_of_all_clients_of_a_round(both, config):
    run, scene = both["centralised"], set_scene(config, None)
    (device,) = {record.client_id for record in run.clients}
    # Batches of four rows, an epoch each, four clients a round.
    steps = np.mean([-(-len(rows) // 4) for rows in scene.partitions.train]) * 4
    assert {record.num_steps for record in run.clients} == {round(steps)}
    assert run.clients[0].num_rows == sum(map(len, scene.partitions.train))
    given = Assignment.from_json(run.clients[0].assignment)
    assert given.num_trained_blocks == 4
    assert given.max_rank == 4
    others = scene.num_tokens.sum() - scene.num_tokens[device]
    assert run.clients[0].down_bytes == BYTES_A_TOKEN * others
    assert {record.down_bytes for record in run.clients[1:]} == {0}
    assert {e.split for e in run.evaluations} == {"test", "unseen"}


def test_rows_of_all_teach_more_than_ones_own(both):
    assert both["centralised"].rounds[-1].accuracy > 0.8
    assert both["centralised"].rounds[-1].accuracy > both["local_only"].rounds[-1].accuracy


def test_a_yardstick_sets_no_budget_and_meets_none(both):
    def one(name: str, yardstick: Any) -> Finished:
        entrant = Entrant(name=name, options={}, yardstick=yardstick)
        run = both["local_only"] if yardstick else both["centralised"]
        return Finished(trial=Trial(entrant=entrant, setting={}, seed=0, tuned={}), run=run)

    rows = rows_of([one("hetlora", None), one("largest_that_fits", "local_only")], {"": 0.5})
    assert {r.measure for r in rows if r.policy == "local_only"} >= {"accuracy", "accuracy of worst tenth"}
    assert not [r for r in rows if r.policy == "local_only" and r.measure == "accuracy at equal"]
    (equal,) = [r for r in rows if r.measure == "accuracy at equal" and r.group == "bytes"]
    # Alone nobody moves as many bytes, and had it set the budget there would be no accuracy yet.
    assert equal.value == both["centralised"].rounds[-1].accuracy


@pytest.mark.parametrize(
    ("menu", "stands"),
    [
        ({}, True),
        ({"cuts": [1]}, True),
        ({"cuts": [1], "whole": False}, False),
        ({"tunings": ["full"], "ranks": [], "depths": ["all"], "widths": [0.5]}, False),
        ({"up_codecs": ["int8"]}, False),
    ],
)
def test_where_no_whole_model_is_sent_as_it_is_there_are_none(tiny, menu, stands):
    assert can_stand(load_config(merged(tiny, {"menu": menu}))) is stands
