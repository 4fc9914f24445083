"""What a comparison says of runs, on records whose numbers can be worked out by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedray.comparison.contest import Finished, Row, difference, rows_of, targets_of
from fedray.comparison.entrants import Entrant, Trial
from fedray.comparison.measures import jain, trajectory_of
from fedray.comparison.page import comparison_page, text_of
from fedray.comparison.shown_numbers import shown_difference, shown_median
from fedray.record import ClassRecord, ClientRecord, RoundRecord
from fedray.report.reading import Run

ROUND = RoundRecord(
    round=1,
    accuracy=0.5,
    loss=1.0,
    virtual_seconds=10.0,
    wall_seconds=1.0,
    up_bytes=0,
    down_bytes=0,
    joules=4.0,
    num_ok=1,
    num_late=0,
    num_dropped=0,
    num_oom=0,
    num_failed=0,
    drift=0.0,
)
CLIENT = ClientRecord(
    round=1,
    client_id=0,
    device_class="phone",
    assignment="{}",
    memory_bytes=1000,
    predicted_peak_bytes=500,
    measured_peak_bytes=None,
    predicted_up_bytes=0,
    predicted_down_bytes=0,
    up_bytes=60,
    down_bytes=40,
    provision_bytes=0,
    num_rows=1,
    num_steps=1,
    virtual_seconds=10.0,
    wall_seconds=1.0,
    joules=4.0,
    outcome="ok",
    loss=1.0,
    attempts=1,
    message="",
)


def finished(policy: str, seed: int, accuracy: list[float], seconds: float = 10.0) -> Finished:
    """Rounds of equal length; client 0 is always asked and ok, client 1 in the first and late."""
    rounds = [
        replace(ROUND, round=i, accuracy=value, virtual_seconds=seconds)
        for i, value in enumerate(accuracy, 1)
    ]
    clients = [replace(CLIENT, round=record.round, virtual_seconds=seconds) for record in rounds]
    clients.append(replace(CLIENT, client_id=1, outcome="late", virtual_seconds=seconds, up_bytes=0))
    run = Run(
        folder=Path("nowhere"),
        rounds=rounds,
        clients=clients,
        evaluations=[],
        config={},
        config_text="",
        environment={},
    )
    entrant = Entrant(name=policy, options={})
    return Finished(trial=Trial(entrant=entrant, setting={}, seed=seed, tuned={}), run=run)


def value_of(rows: list[Row], policy: str, measure: str, group: str = "") -> Row:
    (row,) = [r for r in rows if (r.policy, r.measure, r.group) == (policy, measure, group)]
    return row


def test_accuracy_is_compared_at_what_the_cheapest_run_spent_and_not_at_equal_rounds():
    # After three rounds the slow one is better; within the 30 seconds of the quick one it has had one round.
    quick, slow = finished("quick", 0, [0.4, 0.5, 0.6], 10.0), finished("slow", 0, [0.5, 0.7, 0.9], 30.0)
    rows = rows_of([quick, slow], {"": 0.6})
    assert value_of(rows, "slow", "accuracy").value == 0.9
    assert value_of(rows, "slow", "accuracy at equal", "virtual time").value == 0.5
    assert value_of(rows, "quick", "accuracy at equal", "virtual time").value == 0.6
    # Both moved the same bytes: 100 a round, and 40 to the late client.
    assert value_of(rows, "slow", "accuracy at equal", "bytes").value == 0.9
    assert value_of(rows, "slow", "total", "bytes").value == 340


def test_before_its_first_evaluation_a_run_has_no_accuracy():
    quick, slow = finished("quick", 0, [0.4]), finished("slow", 0, [0.9], 30.0)
    rows = rows_of([quick, slow], {"": 0.3})
    assert value_of(rows, "slow", "accuracy at equal", "virtual time").value is None


def test_a_target_is_paid_when_first_reached_and_censored_at_all_that_was_spent_if_never():
    reaches, never = finished("reaches", 0, [0.4, 0.7, 0.6]), finished("never", 0, [0.4, 0.5, 0.6])
    rows = rows_of([reaches, never], {"": 0.65})
    found = [value_of(rows, name, "cost to target", "virtual time") for name in ("reaches", "never")]
    assert [(row.value, row.censored) for row in found] == [(20.0, False), (30.0, True)]
    assert shown_median(rows, "never", "cost to target", "virtual time") == "> 30.0 s"


def test_a_median_over_seeds_counts_a_missed_target_as_more_than_any_other():
    runs = [finished("p", seed, [0.5, last]) for seed, last in enumerate((0.7, 0.8, 0.6))]
    rows = rows_of(runs, {"": 0.65})
    assert shown_median(rows, "p", "cost to target", "virtual time") == "20.0 s (2 of 3)"


def test_the_target_is_95_percent_of_the_best_median_unless_given():
    runs = [finished(name, seed, [end]) for name, ends in (("a", (0.6, 0.8, 0.7)), ("b", (0.1, 0.2, 0.9)))
            for seed, end in enumerate(ends)]  # fmt: skip
    assert targets_of(runs, None)[""] == pytest.approx(0.95 * 0.7)
    assert targets_of(runs, 0.5) == {"": 0.5}


def test_differences_are_paired_by_seed():
    # By seed: +0.1, +0.1, +0.1; unpaired they would drown in what seeds differ by.
    runs = [
        finished(name, seed, [base + more])
        for seed, base in enumerate((0.2, 0.5, 0.8))
        for name, more in (("mine", 0.1), ("theirs", 0.0))
    ]
    found = difference(rows_of(runs, {"": 0.5}), "mine", "theirs", "accuracy")
    assert found.seeds == 3
    assert (found.mean, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))


def test_an_interval_is_the_bootstraps_over_seeds_and_two_seeds_have_none():
    ends = (0.50, 0.52, 0.60, 0.55, 0.51)
    runs = [finished(name, seed, [end if name == "mine" else 0.5]) for seed, end in enumerate(ends)
            for name in ("mine", "theirs")]  # fmt: skip
    rows = rows_of(runs, {"": 0.5})
    found = difference(rows, "mine", "theirs", "accuracy")
    # All 5 ** 5 resamples, each as likely: the bootstrap without chance.
    deltas = np.array(ends) - 0.5
    means = np.stack(np.meshgrid(*[deltas] * 5)).reshape(5, -1).mean(axis=0)
    assert found.mean == pytest.approx(deltas.mean())
    assert found.low == pytest.approx(np.percentile(means, 2.5), abs=0.003)
    assert found.high == pytest.approx(np.percentile(means, 97.5), abs=0.003)
    two = [row for row in rows if row.seed < 2]
    assert difference(two, "mine", "theirs", "accuracy").low is None
    assert shown_difference(two, "mine", "theirs", "accuracy") == "+0.010"


def test_a_censored_number_is_in_no_difference():
    runs = [finished("mine", seed, [0.5, end]) for seed, end in enumerate((0.7, 0.6))]
    runs += [finished("theirs", seed, [0.7, 0.7]) for seed in range(2)]
    found = difference(rows_of(runs, {"": 0.65}), "mine", "theirs", "cost to target", "virtual time")
    assert (found.mean, found.seeds) == (10.0, 1)


def test_waste_is_the_share_of_what_clients_spent_that_did_not_count():
    rows = rows_of([finished("p", 0, [0.5, 0.6, 0.7])], {"": 0.5})
    assert value_of(rows, "p", "waste", "virtual time").value == pytest.approx(10 / 40)
    assert value_of(rows, "p", "waste", "bytes").value == pytest.approx(40 / 340)
    assert value_of(rows, "p", "participation").value == 0.5  # three updates of one client, none of the other
    assert value_of(rows, "p", "peak share of memory").value == 0.5


def test_jains_index_is_that_of_its_paper():
    # Jain, Chiu and Hawe (1984): x = (sum x)^2 / (n sum x^2).
    assert jain([1, 1, 1, 1]) == 1.0
    assert jain([1, 0, 0, 0]) == 0.25
    assert jain([3, 1]) == pytest.approx(16 / 20)
    assert jain([0, 0]) is None


def test_a_run_that_evaluated_nothing_has_costs_and_no_accuracy():
    blind = finished("p", 0, [0.5])
    run = replace(blind.run, rounds=[replace(blind.run.rounds[0], accuracy=None)])
    assert trajectory_of(run).final is None
    rows = rows_of([replace(blind, run=run)], targets_of([replace(blind, run=run)], None))
    assert value_of(rows, "p", "accuracy").value is None
    assert value_of(rows, "p", "total", "energy").value == 4.0


LONG = "hetlora(capacity=up_bps, patience=3, some_option=another)"


def test_on_a_terminal_of_80_columns_no_name_is_cut_off_and_no_line_is_longer():
    names = (LONG, "everybody_smallest")
    runs = [finished(name, seed, [0.5, 0.7 + seed / 100]) for seed in range(3) for name in names]
    lines = text_of(rows_of(runs, {"": 0.65}), {"": 0.65}).splitlines()
    assert max(map(len, lines)) <= 80
    # A name is folded in the first column; it stands whole in each of two tables.
    folded = "".join(line[:20] for line in lines[2:]).replace(" ", "")
    assert folded.count(LONG.replace(" ", "")) == 2
    accuracy, cost = [" ".join(line.split()[1:]) for line in lines if line.startswith("everybody_smallest")]
    # Seeds end at 0.70, 0.71 and 0.72, as the first policy's do; the target is reached after 20 s.
    assert accuracy == "0.710 0.710 0.710 0.710 +0.000 [+0.000, +0.000]"
    assert cost.startswith("20.0 s")


def held(name, accuracy):
    model = "2 of 4 blocks" if accuracy is not None else ""
    return ClassRecord(
        device_class=name,
        num_clients=4,
        num_holding=3,
        assignment="",
        model=model,
        accuracy=accuracy,
        loss=None,
    )


def test_what_a_class_can_run_by_itself_is_a_measure_of_the_class_and_null_where_it_holds_nothing():
    runs = []
    for seed in range(3):
        one = finished("p", seed, [0.5])
        classes = (held("watch", None), held("phone", 0.3 + seed / 10))
        runs.append(Finished(trial=one.trial, run=replace(one.run, classes=classes)))
    rows = rows_of(runs, {"": 0.4})
    by_class = [(r.seed, r.group, r.value) for r in rows if r.measure == "accuracy on device"]
    assert by_class[:4] == [(0, "watch", None), (0, "phone", 0.3), (1, "watch", None), (1, "phone", 0.4)]
    assert shown_median(rows, "p", "accuracy on device", "phone") == "0.400"
    page = comparison_page(runs, rows, [], {"": 0.4})
    assert "the largest part of it that at least half of the class can train without a server" in page
    assert "<td>0.400</td>" in page
