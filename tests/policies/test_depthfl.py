"""DepthFL in whole runs: depths by memory, heads at exits, each averaged over who has it."""

import pytest
import torch
from transformers import AutoModel

from fedray.agreed import agreed_local_rules
from fedray.assignment import Assignment
from fedray.config import load_config
from fedray.engine import run
from fedray.errors import ConfigError, PolicyError
from fedray.policy_loading import load_policy
from tiny_run import assert_same_adapter, begun, merged, played, save_fleet, save_model

# With four rows a step one block takes 75 KiB, two 123 and all four 220.
MEMORY_KIB = [90, 140, 400, 90, 140, 400, 90, 140]


@pytest.fixture
def by_depth(tiny, tmp_path):
    return merged(
        tiny,
        {
            "menu": {"ranks": [2], "depths": ["all"], "exits": [1, 2], "per_device_train_batch_size": [4]},
            "policy": "depthfl",
            "fleet": save_fleet(tmp_path / "unlike.csv", MEMORY_KIB),
            "rounds": {"num_rounds": 2, "clients_per_round": 8},
            "training": {"exit_ramp_rounds": 2},
        },
    )


def test_everybody_trains_the_deepest_model_that_fits_at_the_cost_that_was_predicted(by_depth, tmp_path):
    result = run(load_config(by_depth), tmp_path / "run")
    given = {row.client_id: Assignment.from_json(row.assignment) for row in result.clients}
    depths = {client: len(entry.blocks) for client, entry in given.items()}
    assert set(depths.values()) == {1, 2, 4}
    assert {entry.exits for entry in given.values()} == {(1,), (1, 2)}
    for row in result.clients:
        assert row.outcome == "ok"
        assert (row.up_bytes, row.down_bytes) == (row.predicted_up_bytes, row.predicted_down_bytes)
        if row.measured_peak_bytes is not None:
            assert row.measured_peak_bytes == pytest.approx(row.predicted_peak_bytes, rel=0.02)
            assert row.measured_peak_bytes <= row.memory_bytes
    assert set(result.adapter.head) == {
        f"{prefix}{leaf}" for prefix in ("", "exit_1.", "exit_2.") for leaf in ("weight", "bias")
    }


def test_what_is_above_everybodys_depth_stays_what_it_was_bit_for_bit(by_depth, tmp_path):
    shallow = merged(by_depth, {"fleet": save_fleet(tmp_path / "weak.csv", [140] * 8)})
    before, after = begun(shallow)[1].state.adapter, played(shallow).state.adapter
    for site, factors in after.factors.items():
        same = torch.equal(factors.b, before.factors[site].b)
        assert same == (int(site.split(".")[2]) >= 2), site
    for name, tensor in after.head.items():
        assert torch.equal(tensor, before.head[name]) == (not name.startswith("exit_")), name


def test_parts_that_are_narrower_and_shallower_cost_what_was_predicted_and_join_without_a_change(
    tiny, tmp_path
):
    changes = {
        "menu": {
            "tunings": ["full"],
            "ranks": [],
            "depths": ["all"],
            "exits": [1, 2],
            "widths": [1.0, 0.5],
            "width_axes": ["hidden", "head_dim", "ffn"],
        },
        "policy": "scalefl_style",
        "fleet": save_fleet(tmp_path / "unlike.csv", [100, 160, 220, 600, 100, 160, 220, 600]),
        "rounds": {"num_rounds": 1, "clients_per_round": 8},
        "training": {"learning_rate": 0.0, "head_learning_rate": 0.0},
    }
    result = run(load_config(merged(tiny, changes)), tmp_path / "run")
    given = [Assignment.from_json(row.assignment) for row in result.clients]
    assert len({(entry.cut, entry.width) for entry in given}) >= 3
    assert any(entry.width is not None and entry.cut < 4 for entry in given)
    for row in result.clients:
        assert row.outcome == "ok"
        assert (row.up_bytes, row.down_bytes) == (row.predicted_up_bytes, row.predicted_down_bytes)
        if row.measured_peak_bytes is not None:
            assert row.measured_peak_bytes == pytest.approx(row.predicted_peak_bytes, rel=0.02)
    before = AutoModel.from_pretrained(tiny["model"])
    for name, tensor in result.adapter.weights.items():
        assert torch.equal(tensor, before.get_parameter(name).data), name
    heads = begun(merged(tiny, changes))[1].state.adapter.head
    assert {name: torch.equal(t, heads[name]) for name, t in result.adapter.head.items()} == dict.fromkeys(
        heads, True
    )


def test_packs_change_nothing_but_rounding_and_actors_nothing_at_all(by_depth):
    sgd = merged(by_depth, {"training": {"optim": "sgd", "learning_rate": 0.05}})
    one, other = (played(merged(sgd, {"packs": {"clients_per_pack": size}})).state.adapter for size in (1, 8))
    for name, tensor in one.tensors().items():
        torch.testing.assert_close(tensor, other.tensors()[name], rtol=1e-4, atol=1e-6)
    assert_same_adapter(other, played(merged(sgd, {"packs": {"clients_per_pack": 8}})).state.adapter)


def test_heads_teach_each_other_unless_the_configuration_says_otherwise(by_depth):
    policy = load_policy("depthfl")
    assert agreed_local_rules(load_config(by_depth), policy)["exit_distillation"] == 1.0
    off = merged(by_depth, {"training": {"exit_distillation": 0.0, "exit_ramp_rounds": None}})
    assert agreed_local_rules(load_config(off), policy)["exit_distillation"] == 0.0
    taught, alone = (played(tree).state.adapter.head["weight"] for tree in (by_depth, off))
    assert not torch.equal(taught, alone)


def test_a_ramp_of_nothing_is_refused(by_depth):
    plain = merged(by_depth, {"policy": "largest_that_fits"})
    with pytest.raises(
        ConfigError, match="exit_ramp_rounds has no effect with the policy 'largest_that_fits'"
    ):
        begun(plain)


def test_it_refuses_a_menu_without_exits(tiny):
    with pytest.raises(PolicyError, match=r"and the menu has none; give menu.exits, such as \[2, 4\]"):
        played(merged(tiny, {"policy": "depthfl"}))


def test_a_causal_lm_has_no_heads_to_put_behind_blocks(tiny, tmp_path):
    changes = {"model": save_model(tmp_path / "llama", "llama"), "task": "causal_lm", "menu": {"exits": [2]}}
    with pytest.raises(ConfigError, match="exits puts trained heads behind blocks, and the task 'causal_lm'"):
        begun(merged(tiny, changes))


@pytest.mark.parametrize("rules", [{"tempo": 1.0}, {"exit_distillation": -1.0}])
def test_a_policy_that_names_another_local_rule_is_told_which_there_are(tmp_path, rules):
    file = tmp_path / "mine.py"
    file.write_text(
        f"local_rules = {rules}\ndef assign(cohort, offers):\n    return offers.best(offers.cut)\n"
    )
    with pytest.raises(
        PolicyError, match="gives weights of 0 or more to proximal_mu, tail_penalty, exit_distil"
    ):
        load_policy(file)
