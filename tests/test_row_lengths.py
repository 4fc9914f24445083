"""What batches are padded to on average: by hand, against every subset there is, and in a price."""

from dataclasses import replace
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.assignment import Assignment, HeadOnly, Lora
from fedray.cost import ServerShare
from fedray.price_sheet import compute_seconds_of, price_sheet, riders_of
from fedray.row_lengths import RowLengths
from fedray.testing import priced_model

WHOLE = Assignment(blocks=(0, 1, 2, 3), adapter=HeadOnly(), batch_size=2)
CUT = Assignment(
    blocks=(0, 1), split=True, adapter=Lora(ranks=(2,) * 4, targets=("query",)), batch_size=2, num_epochs=1
)


def lengths_of(*rows):
    return RowLengths.of([np.array(own) for own in rows])


def mean(rows, **changes):
    [found] = lengths_of(rows).mean_longest(replace(WHOLE, **changes)).tolist()
    return found


def test_two_of_three_rows_are_as_long_as_the_three_pairs_on_average():
    # 8 and 16, 8 and 40, 16 and 40.
    assert mean([16, 8, 40], max_steps=1) == pytest.approx((16 + 40 + 40) / 3)


def test_an_epoch_s_last_batch_has_the_rows_that_are_left():
    # One batch of two and one of one: (32 + (16 + 8 + 40) / 3) / 2; a third step is of two again.
    two, one = 32.0, 64 / 3
    assert mean([16, 8, 40]) == pytest.approx((two + one) / 2)
    assert mean([16, 8, 40], num_epochs=5) == pytest.approx((two + one) / 2)
    assert mean([16, 8, 40], max_steps=3) == pytest.approx((2 * two + one) / 3)


def test_a_batch_of_all_rows_or_of_more_is_as_long_as_the_longest():
    assert mean([16, 8, 40], batch_size=3) == mean([16, 8, 40], batch_size=9, max_steps=4) == 40.0


def test_clients_keep_their_own_rows_whatever_their_order():
    both = lengths_of([8, 8, 24], [16, 16], [8])
    assert (both.shortest, both.longest.tolist()) == (8, [24, 16, 8])
    taken = both[np.array([2, 1, 1, 0])]
    assert taken.longest.tolist() == [8, 16, 16, 24]
    assert taken.mean_longest(WHOLE)[:3].tolist() == [8.0, 16.0, 16.0]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=7), min_size=1, max_size=3), st.integers(1, 8)
)
def test_one_batch_is_as_long_as_all_subsets_are_on_average(eighths, size):
    rows = [8 * np.array(own) for own in eighths]
    found = RowLengths.of(rows).mean_longest(replace(WHOLE, batch_size=size, max_steps=1))
    of_all = [
        np.mean([max(some) for some in combinations(own.tolist(), min(size, len(own)))]) for own in rows
    ]
    assert found == pytest.approx(of_all)
    assert (found <= [own.max() for own in rows]).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(1, 6), st.integers(1, 8))
def test_steps_are_as_long_as_those_of_all_orders_of_an_epoch_are_on_average(eighths, size, steps):
    rows = [8 * own for own in eighths]
    starts = range(0, len(rows), size)
    orders = [[max(order[at : at + size]) for at in starts] for order in permutations(rows)]
    by_place = np.mean(orders, axis=0)  # of an epoch's first batch, its second and so on
    expected = np.mean([by_place[step % len(by_place)] for step in range(steps)])
    assert mean(rows, batch_size=size, max_steps=steps) == pytest.approx(expected)


# Prices.


def footprint_of(entry, work):
    """The priced model's at 8 tokens, of as many times the arithmetic as there are eights of tokens."""
    found, times = priced_model.footprint_of(entry, work), work.tokens // 8
    share = found.server
    return replace(
        found,
        peak_bytes=times * found.peak_bytes,
        forward_flops=times * found.forward_flops,
        roofline=type(found.roofline)([times * found.forward_flops], [0]),
        server=None
        if share is None
        else replace(share, flops=times * share.flops, activation_bytes=times * share.activation_bytes),
    )


def cohort_of(*rows):
    """Clients of 100 FLOP/s with these rows."""
    lengths = lengths_of(*rows)
    clients = [priced_model.Client(memory_bytes=10**6, num_rows=len(own)) for own in rows]
    return replace(priced_model.cohort_of(clients), tokens=lengths.longest, row_lengths=lengths)


def test_time_lies_between_the_two_lengths_and_memory_is_the_longest_s():
    # Two steps of 405 FLOPs an eight of tokens, of which there are 4 and 8 / 3 on average, at 100 FLOP/s.
    cohort = cohort_of([16, 8, 40])
    sheet = price_sheet([WHOLE], cohort, footprint_of, None)
    assert sheet.compute_seconds[0, 0] == pytest.approx((4 + 8 / 3) * 4.05)
    assert compute_seconds_of([WHOLE], cohort, footprint_of, None) == pytest.approx((4 + 8 / 3) * 4.05)
    assert sheet.peak_bytes[0, 0] == 5 * priced_model.footprint_of(WHOLE, None).peak_bytes


def test_under_a_cut_the_server_s_arithmetic_is_that_of_a_mean_step_and_its_memory_the_longest_s():
    # A step has 10 / 3 eights of tokens: 205 FLOPs of each here at 100 FLOP/s, 200 on the server at 50.
    cohort = cohort_of([16, 8, 40])
    sheet = price_sheet([CUT], cohort, footprint_of, priced_model.SERVER)
    riders, [share] = riders_of([CUT], cohort, footprint_of)
    assert sheet.compute_seconds[0, 0] == pytest.approx(2 * 10 / 3 * 2.05)
    assert riders.server_flops.tolist() == [round(200 * 10 / 3)]
    assert sheet.server_seconds[0, 0] == pytest.approx(2 * round(200 * 10 / 3) / 50)
    assert isinstance(share, ServerShare)
    assert sheet.server_bytes[0, 0] == share.activation_bytes + share.adapter_bytes == 5 * 20 + 4


@pytest.mark.parametrize("entry", [WHOLE, CUT])
def test_where_every_batch_is_as_long_as_the_longest_no_second_length_is_asked_for(entry):
    asked = set()

    def counted(one, work):
        asked.add(work.tokens)
        return footprint_of(one, work)

    alike = cohort_of([40, 40, 40], [40, 40])
    plain = replace(alike, row_lengths=None)
    found, known = (price_sheet([entry], c, counted, priced_model.SERVER) for c in (alike, plain))
    for name in ("compute_seconds", "middle_seconds", "server_seconds", "server_bytes"):
        assert getattr(found, name).tobytes() == getattr(known, name).tobytes()
    assert asked == {40}
    price_sheet([entry], cohort_of([16, 8, 40], [40, 40]), counted, priced_model.SERVER)
    assert asked == {40, 8}
