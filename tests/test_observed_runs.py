"""A policy that asks clients for statistics of their blocks: what it learns, and what that costs."""

import json

import numpy as np
import pytest

from fedray import engine
from fedray.config import load_config
from fedray.engine import run
from fedray.errors import PolicyError
from fedray.planning import plan
from fedray.progress import history_of
from tiny_run import merged, played, records, save_fleet

ASKING = """
import numpy as np

class Asking:
    observables = {"salience", "grad_norm"}

    def select(self, view, state):
        return view.sample()

    def assign(self, cohort, offers):
        return offers.best(offers.sum_of_ranks)

    def observe(self, rows, state):
        seen = [row["statistics"] for row in rows if row["statistics"]]
        norms = np.nansum([np.zeros(4), *(one["grad_norm"] for one in seen)], axis=0)
        return {**state, "norms": [*state.get("norms", []), norms], "names": sorted(seen[0])}
"""


@pytest.fixture
def asking(tiny, tmp_path):
    (tmp_path / "asking.py").write_text(ASKING)
    return merged(tiny, {"policy": str(tmp_path / "asking.py"), "rounds": {"num_rounds": 2}})


def test_a_policy_learns_what_it_asked_for_and_records_have_it(tiny, asking):
    result = played(asking)
    assert result.policy_state["names"] == ["grad_norm", "salience"]
    for number, norms in enumerate(result.policy_state["norms"], start=1):
        rows = [json.loads(r.statistics)["grad_norm"] for r in result.clients if r.round == number]
        assert norms.tolist() == np.nansum(np.array(rows, float), axis=0).tolist()
        assert (norms > 0).all()
    # A client that trains the top block alone has nothing to say of the others.
    shallow = [r for r in result.clients if json.loads(r.assignment)["adapter"]["ranks"][:3] == [0, 0, 0]]
    assert shallow
    for record in shallow:
        values = json.loads(record.statistics)["salience"]
        assert values[:3] == [None] * 3
        assert values[3] > 0


def test_statistics_are_in_the_bytes_that_were_predicted_and_priced(tiny, asking):
    plain = played(merged(tiny, {"rounds": {"num_rounds": 2}}))
    asked = played(asking)
    assert {r.statistics for r in plain.clients} == {"{}"}
    for one, other in zip(plain.clients, asked.clients, strict=True):
        assert other.up_bytes == other.predicted_up_bytes
        # Two tensors of four values, and their lines in the header.
        assert 2 * 4 * 4 < other.up_bytes - one.up_bytes < 2 * 4 * 4 + 200
        assert other.down_bytes == one.down_bytes
        assert other.virtual_seconds > one.virtual_seconds
        assert (other.loss, other.client_id) == (one.loss, one.client_id)
    planned = plan(load_config(asking)).clients
    up = {(r.client_id, r.assignment): r.up_bytes for r in asked.clients}
    for client in planned:
        key = client.client_id, client.assignment.to_json()
        assert up.get(key, client.up_bytes) == client.up_bytes
    assert {(c.client_id, c.assignment.to_json()) for c in planned} & up.keys()


def test_clients_whose_update_did_not_count_report_nothing(tiny, asking, tmp_path):
    fleet = save_fleet(tmp_path / "fleet.csv", availability=[0.4] * 8)
    result = played(merged(asking, {"fleet": fleet, "dropouts": True}))
    for record in result.clients:
        assert (record.statistics == "{}") is (record.outcome != "ok")
    assert {record.outcome for record in result.clients} == {"ok", "dropped"}


def test_statistics_come_back_from_a_folder_as_they_were(asking, tmp_path):
    result = run(load_config(asking), tmp_path / "out")
    again = engine.resume(tmp_path / "out")
    assert [r.statistics for r in again.clients] == [r.statistics for r in result.clients]
    assert [row["statistics"] for row in records(tmp_path / "out", "clients")] == [
        record.statistics for record in result.clients
    ]
    for one, other in zip(history_of(result.clients), history_of(again.clients), strict=True):
        assert list(one["statistics"]) == ["grad_norm", "salience"]
        for name, values in one["statistics"].items():
            assert values.shape == (4,)
            assert np.array_equal(values, other["statistics"][name], equal_nan=True)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ('{"hessian"}', r"asks clients for 'hessian'; observables are grad_norm, fisher, salience"),
        (
            '"fisher"',
            r"observables is a set of grad_norm, fisher, salience, squared_loss, kept_rank, not 'fisher'",
        ),
    ],
)
def test_an_observable_that_nobody_knows_is_a_sentence(tiny, tmp_path, said, message):
    policy = tmp_path / "curious.py"
    policy.write_text(
        f"observables = {said}\ndef assign(cohort, offers): return offers.best(offers.joules)\n"
    )
    with pytest.raises(PolicyError, match=message):
        played(merged(tiny, {"policy": str(policy)}))
