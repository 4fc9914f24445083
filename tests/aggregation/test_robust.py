"""Robust rules: byzfl's numbers where shapes agree, cases worked by hand where they do not, and attackers."""

import pytest
import torch
from scipy.optimize import minimize

from fedray.adapter import Adapter, Factors, GlobalState
from fedray.aggregation.chosen import choose_rule
from fedray.aggregation.presets import make_aggregation
from fedray.aggregation.robust import Robust
from fedray.config import load_config
from fedray.errors import ConfigError

# Seven updates, the first two of them attackers'.
SEVEN = [
    [60.0, -50.0, 40.0],
    [60.0, -52.0, 41.0],
    [-6.0, -3.0, -7.0],
    [1.0, 6.0, -8.0],
    [-9.0, 9.0, 7.0],
    [1.0, -4.0, 4.0],
    [-8.0, -9.0, -3.0],
]


def combined(name, updates, **options):
    """What a rule makes of vectors of one length."""
    state = GlobalState(adapter=Adapter(head={"w": torch.zeros(len(updates[0]), dtype=torch.float64)}))
    total = make_aggregation(name, options).start(state)
    for values in updates:
        total.add(Adapter(head={"w": torch.tensor(values, dtype=torch.float64)}), state.adapter, 1.0)
    return total.finish().adapter.head["w"]


@pytest.mark.parametrize(
    ("name", "options", "theirs"),
    [
        # byzfl 0.0.11: Median, TrMean(2), Krum(2), MultiKrum(2), GeometricMedian(nu=1e-9, T=2000).
        ("median", {}, [1.0, -4.0, 4.0]),
        ("trimmed_mean", {"share": 0.3}, [-4 / 3, -16 / 3, 8 / 3]),
        ("krum", {"share": 0.3}, [-6.0, -3.0, -7.0]),
        ("multi_krum", {"share": 0.3}, [-4.2, -0.2, -1.4]),
        ("geometric_median", {}, [0.403532, -3.999289, 2.681850]),
    ],
)
def test_where_all_hold_the_same_a_rule_has_byzfls_numbers(name, options, theirs):
    assert combined(name, SEVEN, **options).tolist() == pytest.approx(theirs, abs=1e-5)


def test_krum_takes_as_many_neighbours_as_the_paper_has_where_byzfl_takes_one_more():
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        vectors = torch.randn(9, 6, generator=generator, dtype=torch.float64)
        squares = torch.cdist(vectors, vectors).square().fill_diagonal_(torch.inf)
        # n - f - 2 of nine with two attackers are five.
        best = squares.sort(dim=1).values[:, :5].sum(dim=1).argmin()
        assert torch.equal(combined("krum", vectors.tolist(), share=0.25), vectors[best])


def test_the_geometric_median_has_the_least_sum_of_distances():
    points = torch.tensor(SEVEN, dtype=torch.float64)

    def far(x):
        return float((points - torch.tensor(x)).norm(dim=1).sum())

    least = minimize(far, points.mean(dim=0).numpy(), method="Nelder-Mead", options={"xatol": 1e-9})
    assert far(combined("geometric_median", SEVEN).tolist()) == pytest.approx(least.fun, rel=1e-7)


def test_norms_are_bounded_by_the_middle_one_or_by_what_is_given():
    updates = [[3.0, 4.0], [0.0, 1.0], [300.0, 400.0]]  # norms 5, 1 and 500
    assert combined("norm_bound", updates).tolist() == pytest.approx([2.0, 3.0])
    assert combined("norm_bound", updates, max_norm=1.0).tolist() == pytest.approx([0.4, 0.8666667])


# Unlike shapes: a rank index is a row of A and a column of B, and A is one wide.


def client(a, b, bias):
    factors = {"q": Factors(a=torch.tensor([[x] for x in a]), b=torch.tensor([b]), scale=1.0)} if a else {}
    return Adapter(factors=factors, head={"bias": torch.tensor([bias])})


def mixed(name, updates, **options):
    state = GlobalState(
        adapter=Adapter(
            factors={"q": Factors(a=torch.zeros(3, 1), b=torch.zeros(1, 3), scale=1.0)},
            head={"bias": torch.zeros(1)},
        )
    )
    total = make_aggregation(name, options).start(state)
    for update in updates:
        ranks = {site: factors.rank for site, factors in update.factors.items()}
        total.add(update, make_aggregation(name).send(state, ranks, 0), 1.0)
    new = total.finish().adapter
    f = new.factors["q"]
    return f.a.flatten().tolist(), f.b.flatten().tolist(), new.head["bias"].tolist()


MIXED = [
    client([1.0], [2.0], 1.0),
    client([3.0, 5.0], [4.0, 6.0], 2.0),
    client([8.0, 1.0], [9.0, 2.0], 3.0),
    client([], [], 9.0),
]


def test_a_median_is_of_each_entry_over_who_holds_it_and_what_nobody_holds_stays():
    # Index 0 has three holders, index 1 two, index 2 none; the head all four.
    assert mixed("median", MIXED) == ([3.0, 3.0, 0.0], [4.0, 4.0, 0.0], [2.5])


def test_a_trimmed_mean_cuts_a_share_of_each_entrys_own_holders():
    # A third of three holders is one from each end, of two none, of four one.
    a, b, bias = mixed("trimmed_mean", MIXED, share=0.34)
    assert a == [3.0, 3.0, 0.0]
    assert b == [4.0, 4.0, 0.0]
    assert bias == [2.5]


def test_krum_compares_by_what_both_hold_and_moves_nothing_that_its_choice_does_not_hold():
    near = [client([1.0], [1.0], 1.0), client([1.1, 7.0], [1.0, 7.0], 1.0), client([50.0], [50.0], 50.0)]
    # The first two are near in what both hold, whatever the second has beside it; of the two the shorter.
    a, b, bias = mixed("krum", near, share=0.34)
    assert (a, b, bias) == ([1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0])


def test_who_holds_little_is_no_nearer_than_who_holds_much():
    # All are one off from the middle in each entry they hold, so all count the same.
    updates = [client([1.0, 1.0], [1.0, 1.0], 1.0), client([-1.0, -1.0], [-1.0, -1.0], -1.0)] * 2
    a, b, bias = mixed("geometric_median", [*updates, client([], [], 1.0), client([], [], -1.0)])
    assert a == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)
    assert bias == pytest.approx([0.0], abs=1e-6)
    assert b == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)


ROBUST = ("median", "trimmed_mean", "krum", "multi_krum", "geometric_median", "norm_bound")


@pytest.mark.parametrize("name", ROBUST)
def test_two_attackers_of_ten_move_it_little_however_far_they_go_and_a_mean_as_far_as_they_like(name):
    generator = torch.Generator().manual_seed(0)
    honest = [[1.0 + x for x in torch.randn(5, generator=generator).tolist()] for _ in range(8)]
    options = {"share": 0.2} if name in ("trimmed_mean", "krum", "multi_krum") else {}
    for size in (1e2, 1e6):
        attacked = combined(name, [*honest, [-size] * 5, [-size] * 5], **options)
        assert float((attacked - 1.0).norm()) < 3.0
        mean = combined("coverage_mean", [*honest, [-size] * 5, [-size] * 5])
        assert float((mean - 1.0).norm()) > 0.2 * size


def test_all_updates_are_kept_until_the_round_ends_and_none_if_nothing_was_added():
    state = GlobalState(adapter=Adapter(head={"w": torch.zeros(2)}))
    rule = make_aggregation("median")
    assert rule.start(state).finish() is state
    assert rule.breaks == {"L3", "L5", "L6"}


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("krum", {"share": 0.5}, "Option 'share' of aggregation 'krum' is from 0 to below 0.5, found 0.5"),
        ("median", {"share": 0.1}, "Option 'share' of aggregation 'median' is not there"),
        ("krum", {"max_norm": 1.0}, "Option 'max_norm' of aggregation 'krum' is not there"),
        ("norm_bound", {"max_norm": 0.0}, "Option 'max_norm' .* is a finite number above 0"),
        ("krum", {"form": "state"}, "'krum' has no option 'form'; it has share, max_norm"),
        ("trimmed_mean", {"share": "half"}, "share must be a finite number above 0, found 'half'"),
    ],
)
def test_an_option_that_is_none_of_its_own_is_refused(name, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make_aggregation(name, options)


def test_rows_weigh_nothing_and_asking_for_it_is_refused():
    assert not choose_rule(load_config({"aggregation": "krum"}), None).weighs_rows
    assert isinstance(choose_rule(load_config({"aggregation": "krum"}), None).rule, Robust)
    with pytest.raises(ConfigError, match=r"aggregation\.weights: rows has no effect with median"):
        choose_rule(load_config({"aggregation": {"name": "median", "weights": "rows"}}), None)
