"""What clients keep between rounds: handed to whoever is asked, taken back, forgotten once it is nothing."""

import pytest
import torch

from fedray import rounds
from fedray.adapter import Adapter, GlobalState
from fedray.engine import play_round
from fedray.holdings import Holdings
from fedray.progress import Progress
from fedray.scheduler import decide, price_menu
from tiny_run import merged, opened


def test_what_a_client_keeps_is_replaced_whole_and_nothing_is_no_state():
    progress = Progress(state=GlobalState(adapter=Adapter()), holdings=Holdings(8))
    progress.remember({3: {"a": torch.ones(2), "b": torch.ones(1)}, 5: {"a": torch.zeros(1)}})
    progress.remember({3: {"a": torch.zeros(2)}, 5: {}, 7: {}})
    assert list(progress.client_states) == [3]
    assert list(progress.client_states[3]) == ["a"]
    assert not progress.client_states[3]["a"].any()


@pytest.mark.parametrize("cuts", [[], [2]])
def test_a_client_that_is_asked_gets_what_it_kept_and_keeps_it_on(tiny, cuts):
    menu = {"cuts": cuts, "whole": False} if cuts else {}
    config = merged(tiny, {"menu": menu, "rounds": {"num_rounds": 1, "clients_per_round": 8}})
    scene, progress, runtime = opened(config)
    kept = {client: {"error.x": torch.randn(3), "steps": torch.tensor(client)} for client in range(8)}
    progress.remember(kept)
    play_round(scene, progress, runtime, 1)
    runtime.close()
    asked = {record.client_id for record in progress.clients if record.outcome == "ok"}
    assert len(asked) >= 4
    assert progress.client_states.keys() == kept.keys()
    for client, state in kept.items():
        for name, tensor in state.items():
            assert torch.equal(progress.client_states[client][name], tensor)


def test_a_client_whose_update_is_no_number_keeps_what_it_had(tiny):
    scene, progress, runtime = opened(merged(tiny, {"rounds": {"clients_per_round": 8}}))
    progress.remember({client: {"steps": torch.tensor(client)} for client in range(8)})
    cohort = scene.cohort(1, torch.arange(8).numpy())
    pricing = rounds.pricing_of(scene, progress, 1)
    schedule = decide(scene.policy, cohort, price_menu(scene.menu, cohort, pricing), {}, pricing)
    asked = rounds.ask(scene, progress, cohort, schedule)
    assert [int(job.client_state["steps"]) for job in asked.jobs] == [job.client_id for job in asked.jobs]
    closed = rounds.close(scene, progress, asked)
    spoilt = asked.jobs[0].sent.factors
    next(iter(spoilt.values())).a.fill_(float("nan"))
    trained = rounds.train(scene, progress.state, rounds.counted(asked, closed), runtime)
    runtime.close()
    assert trained.updates[asked.jobs[0].client_id].message
    assert trained.client_states.keys() == {job.client_id for job in asked.jobs[1:]}
