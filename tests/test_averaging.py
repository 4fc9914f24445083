"""Own sides of cuts that are averaged every so many rounds: by hand, bytes, who is left out, resuming."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from fedray import checkpoint
from fedray.adapter import Adapter, Factors, GlobalState
from fedray.aggregation.rule import relative_change
from fedray.assignment import Assignment
from fedray.config import load_config
from fedray.engine import play_round, run
from fedray.errors import ConfigError
from fedray.model.load import load_backbone
from fedray.planning import plan
from fedray.seeds import derive_seed
from fedray.training.data import batch_plan
from tiny_run import assert_same_adapter, begun, merged, opened, played, save_fleet

# Blocks 0 and 1 are the clients'.
BELOW = ("encoder.layer.0.", "encoder.layer.1.")


@pytest.fixture
def cuts(tiny, tmp_path):
    changes = {
        "menu": {"ranks": [2], "depths": ["all"], "cuts": [2], "whole": False},
        "fleet": {"name": save_fleet(tmp_path / "rich.csv", [4096] * 8)},
        "training": {"optim": "sgd", "learning_rate": 0.2, "max_grad_norm": None},
        "server": {"aggregation_interval": 2},
        "rounds": {"num_rounds": 3, "clients_per_round": 8},
    }
    return merged(tiny, changes)


def trained_by_torch(scene, model, client, number, start: Mapping[str, torch.Tensor]):
    """A client's epoch on the whole model, with nothing but torch; by the names of `Adapter.tensors`."""
    own, rate = scene.partitions.train[client], scene.optimizer.learning_rate
    seed = derive_seed(scene.config.seed, "batches", number, client, 0)
    frozen = {name: p.detach() for name, p in model.named_parameters()}
    sites = sorted({name.rpartition(".")[0] for name in start if not name.startswith("head.")})
    tensors = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    for index in batch_plan(len(own), 4, 1, None, seed):
        batch = scene.encoded.batch(own[index], 16)
        weights = dict(frozen)
        for site in sites:
            product = tensors[f"{site}.lora_B"] @ tensors[f"{site}.lora_A"]
            weights[f"{site}.weight"] = frozen[f"{site}.weight"] + 2.0 * product
        mask = batch["attention_mask"]
        inputs = {"input_ids": batch["input_ids"], "attention_mask": mask}
        hidden = functional_call(model, weights, kwargs=inputs).last_hidden_state
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        logits = pooled @ tensors["head.weight"].T + tensors["head.bias"]
        gradients = torch.autograd.grad(cross_entropy(logits, batch["label"]), list(tensors.values()))
        tensors = {
            name: (tensor - rate * gradient).detach().requires_grad_()
            for (name, tensor), gradient in zip(tensors.items(), gradients, strict=True)
        }
    return {name: tensor.detach() for name, tensor in tensors.items()}


def mean(states: Sequence[Mapping[str, torch.Tensor]], weights, names):
    total = float(sum(weights))
    pairs = list(zip(states, weights, strict=True))
    return {name: sum(state[name] * (weight / total) for state, weight in pairs) for name in names}


def test_three_rounds_with_two_between_averagings_are_fedavg_with_two_groups_of_tensors(cuts):
    scene, progress = begun(cuts)
    model, _ = load_backbone(scene.config.model.name, "classification")
    clients = range(scene.num_clients)
    rows = scene.num_rows.tolist()
    everywhere = progress.state.adapter.tensors()
    below = {name for name in everywhere if name.startswith(BELOW)}
    above = everywhere.keys() - below
    assert len(below) == len(above) - 2 == 8
    starts = [everywhere] * len(clients)
    for number in (1, 2, 3):
        ends = [trained_by_torch(scene, model, c, number, starts[c]) for c in clients]
        averaged = {**mean(ends, rows, above), **mean(ends, rows, below)}
        if number == 1:  # each goes on with its own
            starts = [{**averaged, **{name: end[name] for name in below}} for end in ends]
        else:
            starts = [averaged] * len(clients)
    found = played(cuts).state.adapter.tensors()
    moved = max(float((found[name] - everywhere[name]).abs().max()) for name in below)
    assert moved > 1e-3
    for name, tensor in starts[0].items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)


def test_in_between_what_lies_below_the_cuts_stays_and_above_them_all_is_averaged(cuts):
    scene, progress, runtime = opened(merged(cuts, {"rounds": {"num_rounds": 4}}))
    states = [progress.state.adapter.tensors()]
    for number in (1, 2, 3):
        play_round(scene, progress, runtime, number)
        states.append(progress.state.adapter.tensors())
    runtime.close()
    for number, averaged in ((1, False), (2, True), (3, False)):
        for name, tensor in states[number].items():
            if name.endswith("lora_B"):
                still = torch.equal(tensor, states[number - 1][name])
                assert still is (name.startswith(BELOW) and not averaged), (number, name)


MIXED = """
import numpy as np

def assign(cohort, offers):
    cut = np.array([entry.split for entry in offers.menu])
    tail = np.array([entry.tail for entry in offers.menu])
    loss = np.array([entry.local_loss for entry in offers.menu])
    wanted = (cohort.client_ids % 4)[None]
    kind = np.select([~cut, loss, tail > 0], [0, 1, 2], 3)[:, None]
    return offers.best((kind == wanted) * 1000 + offers.sum_of_ranks[:, None])
"""


def test_an_own_side_goes_down_to_begin_with_and_up_to_be_averaged_only(cuts, tmp_path):
    policy = tmp_path / "mixed.py"
    policy.write_text(MIXED + "observables = {'grad_norm'}\n")
    changes = {
        "menu": {"cuts": [1, 2], "tails": [0, 1], "local_loss": [False, True], "whole": True},
        "policy": str(policy),
        "rounds": {"num_rounds": 5, "clients_per_round": 6},
    }
    progress = played(merged(cuts, changes))
    cut = [record for record in progress.clients if record.cut is not None]
    given = [Assignment.from_json(record.assignment) for record in cut]
    assert {entry.tail for entry in given} == {0, 1}
    assert {entry.local_loss for entry in given} == {False, True}
    # What blocks showed is told in every round.
    told = len(safetensors.torch.save({"statistics.grad_norm": torch.zeros(4)}))
    seen = set()
    for record in progress.clients:
        assert record.outcome == "ok"
        assert (record.up_bytes, record.down_bytes) == (
            record.predicted_up_bytes,
            record.predicted_down_bytes,
        )
        if record.cut is None:
            assert min(record.up_bytes, record.down_bytes) > told
            continue
        assert record.up_bytes > told if record.round in (2, 4, 5) else record.up_bytes == told
        first = (record.round - 1) // 2, record.client_id
        assert (record.down_bytes > 0) is (first not in seen)
        seen.add(first)
    assert progress.client_states == {}


def test_who_has_another_cut_or_rank_now_starts_from_the_global_state(cuts, tmp_path):
    policy = tmp_path / "moving.py"
    policy.write_text(
        "import numpy as np\n"
        "def assign(cohort, offers):\n"
        "    cut = np.where(cohort.client_ids == 0, 1 + cohort.round % 2, 2)\n"
        "    rank = np.where(cohort.client_ids == 1, 2 * (1 + cohort.round % 2), 4)\n"
        "    own = offers.cut[:, None] == cut\n"
        "    return offers.best(own & (offers.sum_of_ranks[:, None] == 4 * rank))\n"
    )
    changes = {
        "menu": {"ranks": [2, 4], "cuts": [1, 2]},
        "policy": str(policy),
        "server": {"aggregation_interval": 4},
        "rounds": {"num_rounds": 4, "clients_per_round": 8},
    }
    progress = played(merged(cuts, changes))
    for record in progress.clients:
        starts = record.round == 1 or record.client_id in (0, 1)
        assert (record.down_bytes > 0) is starts, record
        assert record.down_bytes == record.predicted_down_bytes


def test_who_is_not_asked_when_it_is_averaged_has_changed_nothing_below(cuts, tmp_path):
    """Client 7 takes part in round 1 alone: of it there is only what the server's side learnt."""
    ends = []
    for clients in ("[[0, 1, 7], [0, 1]]", "[[0, 1], [0, 1]]"):
        policy = tmp_path / f"select_{len(ends)}.py"
        policy.write_text(
            "class Some:\n"
            f"    def select(self, view, state): return {clients}[view.round - 1]\n"
            "    def assign(self, cohort, offers): return offers.best(offers.sum_of_ranks)\n"
        )
        changes = {"policy": str(policy), "rounds": {"num_rounds": 2}, "menu": {"local_loss": [True]}}
        progress = played(merged(cuts, changes))
        assert progress.client_states == {}
        ends.append(progress.state.adapter.tensors())
    for name, tensor in ends[0].items():
        # To rounding: with another client in its pack a product of more rows may round otherwise.
        same = bool((tensor - ends[1][name]).norm() <= 1e-4 * tensor.norm())
        # Without a gradient from above, what lies below hangs on nobody else's rows.
        if not name.endswith("lora_A"):
            assert same is name.startswith((*BELOW, "head.at_2")), name


@pytest.mark.parametrize("mode", ["replica", "shared"])
def test_a_run_resumed_between_two_averagings_ends_as_an_unbroken_one(cuts, mode, tmp_path):
    changes = {
        "training": {"optim": "adamw", "learning_rate": 1e-2},
        "menu": {"tails": [0, 1]},
        "server": {"aggregation_interval": 3, "mode": mode},
        "rounds": {"num_rounds": 4, "clients_per_round": 5},
    }
    config = merged(cuts, changes)
    whole = played(config)
    scene, progress, runtime = opened(config)
    for number in (1, 2):
        play_round(scene, progress, runtime, number)
    assert progress.client_states
    checkpoint.save(tmp_path, progress)
    again = checkpoint.load(tmp_path)
    for number in (3, 4):
        play_round(scene, again, runtime, number)
    runtime.close()
    assert_same_adapter(again.state.adapter, whole.state.adapter)
    assert [(r.up_bytes, r.down_bytes, r.loss) for r in again.clients] == [
        (r.up_bytes, r.down_bytes, r.loss) for r in whole.clients
    ]


def test_the_drift_of_a_round_is_that_of_the_sites_that_are_averaged(cuts, tmp_path):
    policy = tmp_path / "small.py"
    policy.write_text("def assign(cohort, offers): return offers.best(-offers.sum_of_ranks)\n")
    changes = {
        "menu": {"ranks": [2, 4]},
        "aggregation": "flexlora",
        "policy": str(policy),
        "training": {"learning_rate": 0.0},
    }
    scene, progress, runtime = opened(merged(cuts, changes))
    old, draw = progress.state.adapter, torch.Generator().manual_seed(0)
    factors = {
        site: Factors(a=f.a, b=torch.randn(f.b.shape, generator=draw), scale=f.scale)
        for site, f in old.factors.items()
    }
    progress.state = before = GlobalState(adapter=Adapter(factors=factors, head=old.head))
    record = play_round(scene, progress, runtime, 1)
    runtime.close()
    assert record.drift > 0.01
    assert record.drift == pytest.approx(relative_change(before, progress.state), rel=1e-5)
    moved = {s for s, f in progress.state.adapter.factors.items() if not torch.equal(f.b, factors[s].b)}
    assert moved == {site for site in factors if not site.startswith(BELOW)}


def test_an_interval_without_anything_of_the_clients_own_is_refused(cuts, tmp_path):
    config = merged(cuts, {"menu": {"depths": [2]}})
    with pytest.raises(ConfigError, match=r"averaged every 2 rounds, and none of the menu's 1 assignments"):
        run(load_config(config), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interval_is_the_policys_or_the_configurations(tiny, cuts, tmp_path):
    policy = tmp_path / "rare.py"
    policy.write_text(
        "aggregation_interval = 2\ndef assign(cohort, offers): return offers.best(offers.sum_of_ranks)\n"
    )
    with pytest.raises(
        ConfigError, match=r"interval has no effect with the policy 'rare', which sets it to 2"
    ):
        begun(merged(cuts, {"policy": str(policy)}))
    with pytest.raises(ConfigError, match=r"'rare' averages what lies below the cuts every 2 rounds"):
        begun(merged(tiny, {"policy": str(policy)}))
    own = played(merged(cuts, {"policy": str(policy), "server": {"aggregation_interval": None}}))
    assert_same_adapter(own.state.adapter, played(cuts).state.adapter)


def test_a_plan_shows_that_nothing_goes_up_in_round_one(cuts):
    clients = plan(load_config(cuts)).clients
    assert {client.up_bytes for client in clients} == {0}
    assert min(client.down_bytes for client in clients) > 0
    assert np.isfinite([client.virtual_seconds for client in clients]).all()
