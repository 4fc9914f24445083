"""SCAFFOLD's control variates against the paper's formulas, by hand and over whole rounds."""

from contextlib import closing
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fedray import checkpoint
from fedray.adapter import Adapter, GlobalState, difference
from fedray.aggregation.presets import make_aggregation
from fedray.assignment import Assignment, HeadOnly
from fedray.config import load_config
from fedray.cost import WorkShape
from fedray.engine import play_round
from fedray.errors import ConfigError
from fedray.scene import set_scene
from fedray.training.job import Job
from fedray.training.optimizer import LocalOptimizer
from fedray.training.train import follow, stack_of, unstack
from fedray.training.variates import ServersSum, own_variate, refuse_other_shapes, servers_variate
from shop import assign, build, start
from tiny_run import assert_same_adapter, begun, merged, opened, played, save_fleet

PLAIN = LocalOptimizer(optim="sgd", learning_rate=0.25, max_grad_norm=None)
SCAFFOLD = replace(PLAIN, control_variates=True)
STEPS = 2
# Of f_i(x) = a_i / 2 (x - b_i)^2: the mean of both is least at (1 * 0 + 3 * 4) / (1 + 3) = 3.
CURVATURE, LEAST = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 4.0])
ALONE = Assignment(blocks=(0, 1), adapter=HeadOnly(), batch_size=1)


def job_of(client: int, state: GlobalState, kept: dict[int, dict[str, Tensor]], *, variates: bool) -> Job:
    return Job(
        round=1, client_id=client, dispatch=0, version=0, seed=0, assignment=ALONE, attention="eager",
        sent=state.adapter, num_rows=1, num_steps=STEPS, tokens=4, client_state=kept.get(client, {}),
        variate=servers_variate(state) if variates else {},
    )  # fmt: skip


def rounds_of_quadratics(
    num_rounds: int, optimizer: LocalOptimizer, curvature: Tensor, least: Tensor
) -> tuple[list[float], GlobalState, dict[int, dict[str, Tensor]]]:
    """x after each round with every client asked, by the stack, the rule and the variates that runs use."""
    state = GlobalState(adapter=Adapter(head={"bias": torch.zeros(1)}))
    kept: dict[int, dict[str, Tensor]] = {}
    rule, found = make_aggregation("coverage_mean"), []
    anatomy = build("bert", [1], optimizer).backbones["fp32"].anatomy
    for _ in range(num_rounds):
        jobs = [job_of(i, state, kept, variates=optimizer.control_variates) for i in range(len(least))]
        stack = stack_of([job.sent for job in jobs], optimizer, "cpu")
        follow(stack, jobs, optimizer, anatomy)
        for _ in range(STEPS):
            stack.step(lambda _, head: curvature / 2 * (head["bias"][:, 0] - least).square())
        total, servers = rule.start(state), ServersSum(optimizer, float(len(least)))
        for job, after in zip(jobs, unstack(stack, [job.sent for job in jobs]), strict=True):
            delta = difference(after, job.sent)
            total.add(delta, job.sent, 1.0)
            servers.add(job, delta, 1.0)
            kept[job.client_id] = own_variate(job, delta, optimizer)
        state = servers.after(total.finish())
        found.append(float(state.adapter.head["bias"]))
    return found, state, kept


def test_two_unlike_quadratics_are_solved_where_averaging_alone_drifts_off() -> None:
    # Round 1 has no variates: y_1 = 0; y_2 = 4 - (1 - 0.75)^2 4 = 3.75. So x = 1.875, c_1 = 0,
    # c_2 = (0 - 3.75) / (2 * 0.25) = -7.5 and c = -3.75. Round 2 adds c - c_1 = -3.75 and c - c_2 = 3.75:
    # y_1 = 1.875, 2.34375, 2.6953125 and y_2 = 1.875, 2.53125, 2.6953125: both end in one place.
    found, state, kept = rounds_of_quadratics(2, SCAFFOLD, CURVATURE, LEAST)
    assert found == [1.875, 2.6953125]
    # c_i + = c_i - c + (1.875 - 2.6953125) / 0.5 = c_i - c - 1.640625, and c their mean.
    assert [float(kept[i]["variate.head.bias"]) for i in (0, 1)] == [3.75 - 1.640625, -3.75 - 1.640625]
    assert float(state.moments["variate/head.bias"]) == -1.640625
    # FedAvg's fixed point: x = (0.5625 x + 4 + 0.0625 (x - 4)) / 2.
    drifted, _, _ = rounds_of_quadratics(40, PLAIN, CURVATURE, LEAST)
    assert drifted[-1] == pytest.approx(3.75 / 1.375)
    solved, _, _ = rounds_of_quadratics(40, SCAFFOLD, CURVATURE, LEAST)
    assert solved[-1] == pytest.approx(3.0, abs=1e-6)


@pytest.mark.parametrize("num_clients", [1, 2, 5])
def test_variates_of_clients_with_the_same_data_cancel_to_the_bit(num_clients: int) -> None:
    curvature, least = torch.full((num_clients,), 0.7), torch.full((num_clients,), 3.3)
    plain, _, _ = rounds_of_quadratics(6, PLAIN, curvature, least)
    corrected, _, kept = rounds_of_quadratics(6, SCAFFOLD, curvature, least)
    assert plain == corrected
    assert all(own["variate.head.bias"].any() for own in kept.values())


def test_only_those_asked_move_the_servers_variate_and_by_their_share_of_all_clients() -> None:
    state = GlobalState(
        adapter=Adapter(head={"bias": torch.zeros(1)}),
        moments={"variate/head.bias": torch.tensor([8.0], dtype=torch.float64)},
    )
    servers = ServersSum(SCAFFOLD, 10.0)
    job = job_of(0, state, {}, variates=True)
    servers.add(job, Adapter(head={"bias": torch.tensor([-1.0])}), 4.0)
    # dc = -8 + 1 / (2 * 0.25) = -6, and p = 4 / 10.
    assert float(servers.after(state).moments["variate/head.bias"]) == pytest.approx(8 - 0.4 * 6)
    assert ServersSum(SCAFFOLD, 10.0).after(state) is state


def scaffold(tiny, **changes):  # type: ignore[no-untyped-def]
    training = {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": None, "control_variates": True}
    return merged(tiny, {"menu": {"ranks": [2], "depths": ["all"]}, "training": training, **changes})


def test_a_run_is_told_and_charged_what_it_takes_and_goes_on_from_a_checkpoint(tiny, tmp_path) -> None:  # type: ignore[no-untyped-def]
    fleet = save_fleet(tmp_path / "rich.csv", [4096] * 8)
    config = scaffold(tiny, fleet={"name": fleet}, audit={"share": 0.5})
    scene, whole, runtime = opened(config)
    plain, _ = begun(merged(config, {"training": {"control_variates": False}}))
    _, parts = begun(config)
    with closing(runtime):
        for number in (1, 2, 3):
            play_round(scene, whole, runtime, number)
        for number in (1, 2):
            play_round(scene, parts, runtime, number)
        checkpoint.save(tmp_path, parts)
        again = checkpoint.load(tmp_path)
        assert again is not None
        play_round(scene, again, runtime, 3)
    assert_same_adapter(again.state.adapter, whole.state.adapter)
    assert {n.split(".")[0] for own in again.client_states.values() for n in own} == {"variate"}
    assert all(name.startswith("variate/") for name in again.state.moments)
    # The server's variate is as large as what is trained, and what a client corrects by as well.
    size = sum(t.numel() * t.element_size() for t in whole.state.adapter.tensors().values())
    for record in whole.clients:
        assert record.up_bytes == record.predicted_up_bytes
        assert record.down_bytes == record.predicted_down_bytes > record.up_bytes + size
        if record.measured_peak_bytes is not None:
            assert record.measured_peak_bytes == pytest.approx(record.predicted_peak_bytes, rel=0.02)
    shape = WorkShape(rows=4, tokens=16, attention="eager")
    corrected, uncorrected = (own.footprint(own.menu[0], shape) for own in (scene, plain))
    assert corrected.terms.optimizer - uncorrected.terms.optimizer == size
    assert corrected.up_bytes == uncorrected.up_bytes


def test_variates_change_what_unlike_clients_learn_and_not_their_first_round(tiny) -> None:  # type: ignore[no-untyped-def]
    rounds = {"rounds": {"num_rounds": 2, "clients_per_round": 8}}
    with_them, without = (
        played(merged(scaffold(tiny, **rounds), {"training": {"control_variates": on}}))
        for on in (True, False)
    )
    first, second = ([r.loss for r in run.rounds] for run in (with_them, without))
    assert first[0] == second[0]
    assert first[1] != second[1]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"menu": {"ranks": [2, 4], "depths": ["all"]}}, "everybody has to train the same ranks, blocks and"),
        ({"menu": {"ranks": [2], "depths": ["all"], "head_only": True}}, "everybody has to train the same"),
        ({"aggregation": "flexlora"}, "follow every rank index, and aggregation 'flexlora' gives rank"),
    ],
)
def test_variates_that_are_not_defined_are_refused_before_a_run(tiny, changes, sentence) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=f"training.control_variates .*{sentence}"):
        set_scene(load_config(scaffold(tiny, **changes)), None)


def test_a_policys_own_assignment_of_another_rank_is_refused() -> None:
    workshop = build("bert", [4], SCAFFOLD)
    state = GlobalState(adapter=start(workshop, "bert", assign("bert", 4, 4)))
    smaller = assign("bert", 4, 2)
    with pytest.raises(ConfigError, match="everybody has to train the same ranks, blocks and widths, found"):
        refuse_other_shapes(state, start(workshop, "bert", smaller), smaller)
