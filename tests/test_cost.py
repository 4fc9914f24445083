"""Prices: numbers worked by hand, then laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.cost import Device, Footprint, PeakTerms, Roofline, price

NO_TERMS = PeakTerms(weights=0, adapters=0, gradients=0, optimizer=0, activations=0, logits=0)
OPERATIONS = st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), max_size=12)
RATES = st.floats(1e3, 1e12)


def device_of(**changes):
    facts = {
        "memory_bytes": np.array([1000]),
        "storage_bytes": np.array([10**9]),
        "flops_per_s": {"fp32": np.array([10.0]), "bf16": np.array([20.0])},
        "memory_bytes_per_s": np.array([10.0]),
        "up_bps": np.array([4000.0]),
        "down_bps": np.array([8000.0]),
        "rtt_seconds": np.array([0.25]),
        "compute_watts": np.array([5.0]),
        "idle_watts": np.array([1.0]),
        "radio_joules_per_byte": np.array([0.001]),
    }
    return Device(**(facts | changes))


def footprint_of(roofline, peak_bytes=100):
    return Footprint(
        peak_bytes=peak_bytes,
        terms=NO_TERMS,
        forward_flops=0,
        backward_flops=0,
        moved_bytes=0,
        roofline=roofline,
        up_bytes=1000,
        down_bytes=1000,
        held_bytes={},
        trained_params=0,
    )


def test_an_operation_waits_for_arithmetic_or_for_memory_whichever_is_slower():
    # 100 FLOPs on 10 bytes, then 10 FLOPs on 100 bytes: max(10, 1) + max(1, 10) at 10 FLOP/s and 10 B/s.
    step = Roofline([100, 10], [10, 100])
    slow_arithmetic, fast_arithmetic = np.array([10.0, 100.0])
    seconds = step.seconds(np.array([slow_arithmetic, fast_arithmetic]), np.array([10.0, 10.0]))
    assert seconds.tolist() == [20.0, 11.0]


def test_an_operation_that_moves_nothing_waits_for_arithmetic_alone():
    assert Roofline([100, 0, 10], [0, 0, 100]).seconds(np.array([10.0]), np.array([10.0])).tolist() == [20.0]


def test_a_step_without_operations_takes_no_time():
    assert Roofline([], []).seconds(np.array([10.0]), np.array([10.0])).tolist() == [0.0]


@settings(max_examples=60, deadline=None)
@given(OPERATIONS, st.lists(st.tuples(RATES, RATES), min_size=1, max_size=4))
def test_the_table_look_up_is_the_plain_sum_over_operations(operations, rates):
    step = Roofline([flops for flops, _ in operations], [moved for _, moved in operations])
    found = step.seconds(*(np.array(column) for column in zip(*rates, strict=True)))
    plain = [sum(max(flops / f, moved / b) for flops, moved in operations) for f, b in rates]
    assert found == pytest.approx(plain, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(OPERATIONS, RATES, RATES, st.floats(1, 100), st.floats(1, 100))
def test_a_faster_client_is_never_slower(operations, flops_per_s, bytes_per_s, more_flops, more_bytes):
    step = Roofline([flops for flops, _ in operations], [moved for _, moved in operations])
    slow = step.seconds(np.array([flops_per_s]), np.array([bytes_per_s]))[0]
    fast = step.seconds(np.array([flops_per_s * more_flops]), np.array([bytes_per_s * more_bytes]))[0]
    assert fast <= slow * (1 + 1e-9)


def test_receiving_computing_and_sending_add_up_to_ten_seconds():
    # 3 steps of 2 s; 1500 bytes down at 1000 B/s, 1000 up at 500 B/s, two round trips of 0.25 s.
    offer = price(
        footprint_of(Roofline([20], [1])), "fp32", device_of(), np.array([3]), provision_bytes=np.array([500])
    )
    assert offer.compute_seconds.tolist() == [6.0]
    assert offer.virtual_seconds.tolist() == [10.0]
    # 6 s at 5 W, 4 s at 1 W, 2500 bytes at 1 mJ.
    assert offer.joules.tolist() == pytest.approx([36.5])
    assert (offer.down_bytes[0], offer.up_bytes[0], offer.provision_bytes[0]) == (1000, 1000, 500)


def test_the_dtype_picks_the_arithmetic_rate():
    steps, nothing = np.array([1]), np.array([0])
    step = footprint_of(Roofline([20], [1]))
    assert price(step, "fp32", device_of(), steps, nothing).compute_seconds.tolist() == [2.0]
    assert price(step, "bf16", device_of(), steps, nothing).compute_seconds.tolist() == [1.0]


def test_a_peak_of_100_bytes_needs_102_with_the_margin():
    memory = np.array([100, 101, 102, 103])
    assert footprint_of(Roofline([], []), 100).fits(memory).tolist() == [False, False, True, True]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**12), st.integers(0, 10**12), st.integers(0, 10**12))
def test_more_memory_never_loses_an_offer(peak_bytes, memory_bytes, more):
    step = footprint_of(Roofline([], []), peak_bytes)
    assert not step.fits(memory_bytes) or step.fits(memory_bytes + more)


def test_the_terms_of_a_peak_add_up():
    terms = PeakTerms(weights=1, adapters=2, gradients=4, optimizer=8, activations=16, logits=32)
    assert terms.total == 63


def test_taking_clients_keeps_every_fact_beside_its_client():
    two = device_of(
        memory_bytes=np.array([1, 2]),
        flops_per_s={"fp32": np.array([10.0, 20.0])},
        **{
            name: np.array([1.0, 2.0]) for name in ("up_bps", "down_bps", "rtt_seconds", "memory_bytes_per_s")
        },
        **{name: np.array([1.0, 2.0]) for name in ("compute_watts", "idle_watts", "radio_joules_per_byte")},
        storage_bytes=np.array([1, 2]),
    )
    last = two.take(np.array([1]))
    assert last.flops_per_s["fp32"].tolist() == [20.0]
    others = [name for name in Device.__slots__ if name != "flops_per_s"]
    assert [getattr(last, name).tolist() for name in others] == [[2]] * len(others)
