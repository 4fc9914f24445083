"""Membership tried by a run on itself: in records, report and comparison, and refused where it cannot be."""

import numpy as np
import pytest

import fedray
from fedray.attacks.membership import by_loss
from fedray.comparison.measures import measures_of, trajectory_of
from fedray.config import load_config
from fedray.errors import ConfigError
from fedray.report.reading import read_run
from fedray.scene import furnish, set_scene
from fedray.simulation.devices import simulated_scene
from fedray.training.workshop import open_workshop
from report_page import Page
from tiny_run import merged, played, records

ATTACKED = {
    "attacks": {"membership": True, "rows": 1000},
    "rounds": {"num_rounds": 2, "clients_per_round": 8, "eval_rounds": 2},
}


@pytest.fixture(scope="module")
def left(tiny, tmp_path_factory):
    """A run that tries membership after its second round, on disk."""
    config = merged(tiny, ATTACKED)
    return config, fedray.run(config, out=tmp_path_factory.mktemp("attacked") / "run")


def test_it_is_the_loss_attack_on_rows_of_clients_that_trained(left):
    config, result = left
    first, last = records(result.out, "rounds")
    assert (first["membership_auc"], first["membership_found"]) == (None, None)
    scene = set_scene(load_config(config), None)
    counted = {record.client_id for record in result.clients if record.outcome == "ok"}
    members = np.concatenate([scene.partitions.train[client] for client in sorted(counted)])
    owned = [own for own in scene.partitions.test_of if len(own)]
    others = np.concatenate(owned) if owned else scene.partitions.test
    blueprint, stock, _ = furnish(scene, "cpu")
    workshop = open_workshop(blueprint, stock)
    # All held-out rows were asked about, and as many of the others as there are of these.
    told = by_loss(workshop, result.adapter, members, others)
    assert abs(last["membership_auc"] - told.auc) < 0.1
    assert 0 <= last["membership_found"] <= 1


def test_it_changes_nothing_else_and_is_the_same_every_time(tiny, left):
    config, result = left
    again = played(config)
    assert again.rounds[-1].membership_auc == result.rounds[-1].membership_auc
    without = played(merged(tiny, {"rounds": ATTACKED["rounds"]}))
    assert without.rounds[-1].membership_auc is None
    assert without.rounds[-1].loss == result.rounds[-1].loss


def test_report_and_comparison_tell_it(left):
    _, result = left
    text = Page(fedray.write_report(result.out).read_text()).text
    assert f"the area under the curve is {result.rounds[-1].membership_auc:.3f} (0.5 is guessing)" in text
    run = read_run(result.out)
    trajectory = trajectory_of(run)
    found = measures_of(run, trajectory, budgets=trajectory.totals, target=0.5, clients=range(8))
    told = {one.name: one.value for one in found}
    assert told["membership AUC"] == pytest.approx(result.rounds[-1].membership_auc)
    assert told["members found"] == pytest.approx(result.rounds[-1].membership_found)


def test_a_simulation_has_no_model_to_attack(tiny):
    with pytest.raises(ConfigError, match=r"attacks\.membership looks into what was learnt"):
        simulated_scene(load_config(merged(tiny, ATTACKED)), None)
