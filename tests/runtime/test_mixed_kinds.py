"""One cohort of all clients can be given: ranks, depth, a cut, narrower, in few bits, sent coded or plain."""

from dataclasses import replace
from typing import Any

import pytest
import ray

import fedray
from fedray.assignment import Assignment, Lora
from fedray.trained import Weights
from tiny_run import assert_same_adapter, merged, records, save_fleet

MENU = {
    "tunings": ["lora", "full"],
    "ranks": [2, 4],
    "depths": [1, "all"],
    "cuts": [1],
    "widths": [1.0, 0.5],
    "width_axes": ["ffn"],
    "width_window": "salient",
    "up_codecs": ["none", "int8"],
    "weight_bits": ["all", 8],
}
# A client of each kind, by what its entry is like; the eighth has a submodel, which no menu lists.
KINDS = [
    lambda e: whole_lora(e, 2, 2, 2, 2) and plain(e),
    lambda e: whole_lora(e, 0, 0, 0, 4) and plain(e),
    lambda e: e.split and isinstance(e.adapter, Lora) and e.adapter.ranks == (4, 4, 4, 4) and plain(e),
    lambda e: e.width is not None and e.adapter.stem and plain(e),
    lambda e: isinstance(e.adapter, Weights) and e.adapter.stem and e.width is None and plain(e),
    lambda e: whole_lora(e, 4, 4, 4, 4) and e.up_codec == "int8" and e.weight_bits is None,
    lambda e: whole_lora(e, 4, 4, 4, 4) and e.up_codec == "none" and e.weight_bits == 8,
]


def whole_lora(entry, *ranks):
    return not entry.split and isinstance(entry.adapter, Lora) and entry.adapter.ranks == ranks


def plain(entry):
    return entry.up_codec == "none" and entry.weight_bits is None


class OfEveryKind:
    """Client k gets the k-th kind, and those beyond a model of two of the blocks.

    The second keeps its activations in 8 bits.
    """

    def assign(self, cohort, offers, state):
        given = []
        for client in cohort.client_ids.tolist():
            kind = KINDS[client] if client < len(KINDS) else KINDS[0]
            entry = next(entry for entry in offers.menu if kind(entry))
            if client == 1:
                entry = replace(entry, int8_activations=1)
            if client >= len(KINDS):
                adapter = replace(entry.adapter, ranks=(2, 2))
                entry = replace(entry, blocks=(0, 2), adapter=adapter)
            given.append(entry)
        return given, state


def assert_same_results(one, other):
    """Records and bits; the adapters' folders name the trained weights beside them as their base."""
    for name in ("clients", "rounds", "evaluations"):
        assert records(one.out, name) == records(other.out, name)
    assert_same_adapter(one.adapter, other.adapter)


@pytest.fixture
def mixed(tiny: dict[str, Any], tmp_path) -> dict[str, Any]:
    fleet = save_fleet(tmp_path / "roomy.csv", memory_kib=[4000] * 8)
    rounds = {"num_rounds": 2, "clients_per_round": 8}
    return merged(tiny, {"menu": MENU, "fleet": fleet, "rounds": rounds, "packs": {"clients_per_pack": 3}})


def test_all_kinds_together_train_within_memory_and_go_on_from_a_checkpoint_as_unbroken(mixed, tmp_path):
    unbroken = fedray.run(mixed, out=tmp_path / "unbroken", policy=OfEveryKind())
    given = {row.client_id: Assignment.from_json(row.assignment) for row in unbroken.clients}
    assert len({str(entry) for entry in given.values()}) == len(KINDS) + 1
    assert sum(entry.split for entry in given.values()) == 1
    assert sum(entry.width is not None for entry in given.values()) == 1
    assert sum(entry.is_submodel for entry in given.values()) == 1
    for row in unbroken.clients:
        assert row.outcome == "ok"
        assert (row.up_bytes, row.down_bytes) == (row.predicted_up_bytes, row.predicted_down_bytes)
        if row.measured_peak_bytes is not None:
            assert row.measured_peak_bytes == pytest.approx(row.predicted_peak_bytes, rel=0.02)
            assert row.measured_peak_bytes <= row.memory_bytes
    assert {r.client_id for r in unbroken.clients if r.measured_peak_bytes is not None} >= set(range(8))
    once = merged(mixed, {"rounds": {"num_rounds": 1}})
    fedray.run(once, out=tmp_path / "broken", policy=OfEveryKind())
    text = (tmp_path / "unbroken" / "config.yaml").read_text()
    (tmp_path / "broken" / "config.yaml").write_text(text)
    resumed = fedray.resume(tmp_path / "broken", policy=OfEveryKind())
    assert_same_results(unbroken, resumed)


@pytest.mark.ray
def test_all_kinds_together_are_on_ray_what_they_are_here(mixed, tmp_path):
    once = merged(mixed, {"rounds": {"num_rounds": 1}, "audit": {"distinct": False, "share": 0.0}})
    here = fedray.run(once, out=tmp_path / "here", policy=OfEveryKind())
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    try:
        on_ray = merged(once, {"runtime": "on_ray", "ray": {"num_actors": 2}})
        there = fedray.run(on_ray, out=tmp_path / "there", policy=OfEveryKind())
    finally:
        ray.shutdown()
    assert_same_results(here, there)
