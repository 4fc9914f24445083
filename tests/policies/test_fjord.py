"""FjORD in whole runs: the widest part that fits, smaller ones drawn of it, nested averages by rows."""

from dataclasses import replace

import pytest
import torch

from fedray.adapter import Adapter, GlobalState
from fedray.aggregation.presets import make_aggregation
from fedray.assignment import Assignment
from fedray.config import load_config
from fedray.engine import run
from fedray.errors import ConfigError, PolicyError
from tiny_run import merged, played, save_fleet

MENU = {
    "tunings": ["full"],
    "ranks": [],
    "depths": ["all"],
    "widths": [1.0, 0.5, 0.25],
    "width_axes": ["ffn"],
}


@pytest.fixture
def nested(tiny, tmp_path):
    # Room for a quarter, half or all of the feed-forward units, trained with AdamW.
    fleet = save_fleet(tmp_path / "unlike.csv", [330, 400, 900, 330, 400, 900, 330, 400])
    rounds = {"num_rounds": 1, "clients_per_round": 6}
    return merged(tiny, {"menu": MENU, "policy": "fjord", "fleet": fleet, "rounds": rounds})


def test_nested_parts_are_averaged_by_rows_over_who_may_hold_them():
    # As FjORD's code does it, p descending: units up to p over the clients with p_max of p or more.
    state = GlobalState(adapter=Adapter(weights={"w": torch.zeros(4)}))
    total = make_aggregation("factor_mean").start(state)
    for size, change, rows in ((4, 1.0, 10.0), (2, 4.0, 30.0), (1, 8.0, 40.0)):
        places = {} if size == 4 else {"w": (torch.arange(size),)}
        sent = Adapter(weights={"w": torch.zeros(size)}, places=places)
        total.add(replace(sent, weights={"w": torch.full((size,), change)}), sent, rows)
    # 10 + 120 + 320 over 80 rows; 10 + 120 over 40; 10 over 10, twice.
    assert total.finish().adapter.weights["w"].tolist() == pytest.approx([450 / 80, 130 / 40, 1.0, 1.0])


def test_everybody_holds_the_widest_part_that_fits_and_draws_smaller_ones(nested, tmp_path):
    result = run(load_config(nested), tmp_path / "run")
    drawn = {}
    for row in result.clients:
        assert row.outcome == "ok"
        entry = Assignment.from_json(row.assignment)
        drawn[entry.width.share if entry.width else 1.0] = entry.ordered.shares if entry.ordered else ()
        assert (row.up_bytes, row.down_bytes) == (row.predicted_up_bytes, row.predicted_down_bytes)
        if row.measured_peak_bytes is not None:
            assert row.measured_peak_bytes == pytest.approx(row.predicted_peak_bytes, rel=0.02)
            assert row.measured_peak_bytes <= row.memory_bytes
    assert drawn == {1.0: (0.25, 0.5), 0.5: (0.25,), 0.25: ()}


def test_packs_change_nothing_but_rounding(nested, tmp_path):
    sgd = merged(nested, {"training": {"optim": "sgd", "learning_rate": 0.05, "max_steps": 3}})
    one, other = (
        run(
            load_config(merged(sgd, {"packs": {"clients_per_pack": size}})), tmp_path / f"{size}"
        ).adapter.tensors()
        for size in (1, 8)
    )
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-3, atol=1e-5)


def test_it_refuses_a_menu_without_widths_and_axes_under_which_parts_do_not_nest(tiny, nested):
    with pytest.raises(PolicyError, match="and the menu has none; give"):
        played(merged(tiny, {"policy": "fjord"}))
    hidden = merged(nested, {"menu": {"width_axes": ["hidden", "head_dim"]}})
    with pytest.raises((PolicyError, ConfigError), match="with hidden norms and scores are of another width"):
        played(hidden)
