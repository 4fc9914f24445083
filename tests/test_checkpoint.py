"""Checkpoints: the whole of a run's progress, bit for bit, or the one before."""

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedray import checkpoint
from fedray.adapter import Adapter, Factors, GlobalState
from fedray.holdings import Holdings
from fedray.progress import Progress, Verdict
from left_run import round_record, twelve_clients
from tiny_run import assert_same_adapter


def factors(seed, rank, scale):
    draw = torch.Generator().manual_seed(seed)
    return Factors(
        a=torch.randn(rank, 6, generator=draw), b=torch.randn(5, rank, generator=draw), scale=scale
    )


def progress_after(number):
    holdings = Holdings(24)
    holdings.receive(np.array([3, 9]), {"stem": 100, "block.0": 50}, "fp32", np.array([2**40, 2**40]))
    clients = [record for n in range(1, number + 1) for record in twelve_clients(n)]
    return Progress(
        state=GlobalState(
            # Neither sites nor the head's tensors are in the order of their names.
            adapter=Adapter(
                factors={
                    "z.query": factors(number, 4, 2.0),
                    "a.value": replace(factors(number + 9, 2, 0.1), train_a=False),
                },
                head={"weight": torch.full((3, 5), 1 / 3), "bias": torch.tensor([0.1, -0.0, 1e-45])},
            ),
            base_delta={"m.key": factors(number + 20, 7, 1 / 7)},
            version=number,
        ),
        holdings=holdings,
        policy_state={"kept": {4: np.float32(0.1)}, "names": ("a", ["b"]), "mean": 0.1 + 0.2},
        audited={"work": Verdict(peak_bytes=12345), "large": Verdict(peak_bytes=7, at_least=True)},
        # Of all shapes and dtypes, a name's order and a slash in it included.
        client_states={
            7: {"z/scale": torch.tensor(1 / 3, dtype=torch.float64), "a": torch.ones(2, 3).T},
            11: {"a": torch.tensor([number], dtype=torch.int64)},
        },
        rounds=[round_record(n, [r for r in clients if r.round == n], 0.1 * n) for n in range(1, number + 1)],
        clients=clients,
    )


def test_what_is_loaded_is_what_was_saved_in_the_same_order(tmp_path):
    saved = progress_after(2)
    checkpoint.save(tmp_path, saved)
    loaded = checkpoint.load(tmp_path)
    assert_same_adapter(loaded.state.adapter, saved.state.adapter)
    assert list(loaded.state.adapter.head) == ["weight", "bias"]
    assert list(loaded.state.adapter.factors) == ["z.query", "a.value"]
    assert [f.scale for f in loaded.state.adapter.factors.values()] == [2.0, 0.1]
    assert [f.train_a for f in loaded.state.adapter.factors.values()] == [True, False]
    frozen = loaded.state.adapter.frozen()
    assert torch.equal(frozen["a.value"], saved.state.adapter.frozen()["a.value"])
    assert torch.equal(loaded.state.base_delta["m.key"].b, saved.state.base_delta["m.key"].b)
    assert loaded.state.base_delta["m.key"].scale == 1 / 7
    assert {c: list(kept) for c, kept in loaded.client_states.items()} == {7: ["z/scale", "a"], 11: ["a"]}
    for client, kept in saved.client_states.items():
        for name, tensor in kept.items():
            assert loaded.client_states[client][name].dtype == tensor.dtype
            assert torch.equal(loaded.client_states[client][name], tensor)
    assert (loaded.state.version, loaded.audited) == (2, saved.audited)
    assert loaded.policy_state == saved.policy_state
    assert isinstance(loaded.policy_state["kept"][4], np.float32)
    for name, array in saved.holdings.to_arrays().items():
        assert np.array_equal(loaded.holdings.to_arrays()[name], array)
    assert (loaded.rounds, loaded.clients) == (saved.rounds, saved.clients)


def test_records_ahead_of_the_checkpoint_are_dropped_and_a_part_is_nothing(tmp_path):
    checkpoint.save(tmp_path, progress_after(1))
    kept = tmp_path / "checkpoint" / "round-000001"
    hidden = kept.rename(tmp_path / "hidden")
    checkpoint.save(tmp_path, progress_after(2))
    (tmp_path / "checkpoint" / "round-000002").rename(tmp_path / "checkpoint" / "round-000002.part")
    assert checkpoint.load(tmp_path) is None
    assert not checkpoint.exists(tmp_path)
    hidden.rename(kept)
    loaded = checkpoint.load(tmp_path)
    assert loaded.finished_rounds == 1
    assert {record.round for record in loaded.clients} == {1}
    assert loaded.rounds == progress_after(1).rounds
    checkpoint.save(tmp_path, progress_after(2))
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["round-000002"]


def test_a_state_that_cannot_be_kept_leaves_the_round_before(tmp_path):
    checkpoint.save(tmp_path, progress_after(1))
    bad = progress_after(2)
    bad.policy_state = {"model": object()}
    with pytest.raises(Exception, match="A policy's state is checkpointed"):
        checkpoint.save(tmp_path, bad)
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["round-000001"]
    assert checkpoint.load(tmp_path).finished_rounds == 1


def test_a_file_takes_its_place_whole_or_not_at_all(tmp_path):
    path = tmp_path / "facts.json"
    path.write_text("before")
    with suppress(ZeroDivisionError), checkpoint.replaced(path) as part:
        part.write_text("half")
        raise ZeroDivisionError
    assert [found.name for found in tmp_path.iterdir()] == ["facts.json"]
    assert path.read_text() == "before"
    with checkpoint.replaced(path) as part:
        part.write_text("after")
    assert path.read_text() == "after"
