"""The values a policy sees, and the five shipped policies on a fleet small enough to work out by hand."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.assignment import Assignment, HeadOnly, lora_on_top
from fedray.cost import Device
from fedray.errors import ConfigError, PolicyError
from fedray.policy import Cohort, Offers, Pace, View
from fedray.policy_loading import load_policy

# Small to large: the head alone, rank 2 and 8 on the top block, rank 2 and 8 on both blocks.
HEAD, TOP_2, TOP_8, BOTH_2, BOTH_8 = range(5)
MENU = (
    Assignment(blocks=(0, 1), adapter=HeadOnly()),
    *(
        Assignment(blocks=(0, 1), adapter=lora_on_top(2, depth, rank, targets=("query",)))
        for depth, rank in ((1, 2), (1, 8), (2, 2), (2, 8))
    ),
)
PEAKS = (10, 20, 22, 30, 32)


def offers_of(memory, *, seconds=(1.0, 2.0, 2.5, 4.0, 5.0), menu=MENU, peaks=PEAKS):
    """Entry m takes seconds[m] on every client, and fits where the client's memory is at least its peak."""
    shape = len(menu), len(memory)
    numbers = {
        name: np.zeros(shape, np.int64)
        for name in ("num_steps", "up_bytes", "down_bytes", "provision_bytes", "held_bytes")
    }
    virtual_seconds = np.broadcast_to(np.array(seconds, float).reshape(len(menu), -1), shape)
    return Offers(
        menu=menu,
        fits=np.array(peaks)[:, None] <= np.array(memory),
        peak_bytes=np.broadcast_to(np.array(peaks)[:, None], shape),
        virtual_seconds=virtual_seconds,
        compute_seconds=virtual_seconds,
        joules=np.zeros(shape),
        sum_of_ranks=np.array([entry.sum_of_ranks for entry in menu]),
        trained_params=np.array([entry.sum_of_ranks for entry in menu]),
        **numbers,
    )


def cohort_of(memory, client_ids=None):
    count = len(memory)
    many = np.ones(count)
    return Cohort(
        round=1,
        seed=0,
        client_ids=np.arange(count) if client_ids is None else np.array(client_ids),
        device_class=np.array(["phone"] * count),
        device=Device(
            memory_bytes=np.array(memory),
            storage_bytes=np.array(memory),
            flops_per_s={"fp32": many},
            memory_bytes_per_s=many,
            up_bps=many,
            down_bps=np.arange(count)[::-1] + 1.0,
            rtt_seconds=many,
            compute_watts=many,
            idle_watts=many,
            radio_joules_per_byte=many,
        ),
        num_rows=np.arange(count),
        tokens=np.arange(count),
        attention=np.array(["eager"] * count),
    )


def answered(name, memory, options=None, state=None, client_ids=None, **offers):
    policy = load_policy(name, options)
    choice, after = policy.assign(cohort_of(memory, client_ids), offers_of(memory, **offers), state or {})
    return choice.tolist(), after


def test_the_best_offer_is_the_largest_that_fits_and_the_fastest_of_equals():
    offers = offers_of([5, 22, 50], seconds=(1.0, 3.0, 2.0, 4.0, 5.0))
    assert offers.best(np.array([0, 7, 7, 1, 1])).tolist() == [-1, TOP_8, TOP_8]
    assert offers.best(-offers.virtual_seconds).tolist() == [-1, HEAD, HEAD]
    assert offers.best(offers.sum_of_ranks, among=offers.virtual_seconds < 4).tolist() == [-1, TOP_8, TOP_8]


def test_the_best_of_offers_that_never_arrive_still_fits():
    offers = offers_of([22], seconds=(np.inf,) * 5)
    assert offers.best(np.array([0, 0, 1, 9, 9])).tolist() == [TOP_8]


def test_a_key_that_is_no_number_is_refused():
    with pytest.raises(PolicyError, match="NaN"):
        offers_of([50]).best(np.array([0, 1, np.nan, 0, 0]))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=6),
    st.lists(st.integers(-3, 3), min_size=5, max_size=5),
    st.lists(st.integers(1, 4), min_size=5, max_size=5),
)
def test_no_fitting_offer_beats_the_best(memory, key, seconds):
    offers = offers_of(memory, seconds=seconds)
    for client, chosen in enumerate(offers.best(np.array(key)).tolist()):
        fitting = np.flatnonzero(offers.fits[:, client]).tolist()
        assert (chosen == -1) == (not fitting)
        if fitting:
            assert (key[chosen], -seconds[chosen]) == max((key[m], -seconds[m]) for m in fitting)


def test_taking_clients_of_a_cohort_keeps_every_array_in_step():
    some = cohort_of([1, 2, 3], [7, 8, 9]).take(np.array([2, 0]))
    assert len(some) == 2
    assert some.client_ids.tolist() == [9, 7]
    assert some.device.memory_bytes.tolist() == [3, 1]
    assert (some.num_rows.tolist(), some.tokens.tolist()) == ([2, 0], [2, 0])
    assert (some.round, some.seed) == (1, 0)


def test_a_sample_has_no_repeats_and_no_more_clients_than_there_are():
    view = View(round=1, seed=3, num_clients=10, clients_per_round=4, menu=MENU)
    assert len(set(view.sample().tolist())) == 4
    assert view.sample().tolist() == sorted(view.sample().tolist())
    assert view.sample(99).tolist() == list(range(10))
    assert view.sample(0).tolist() == []
    assert dataclasses.replace(view, seed=4).sample().tolist() != view.sample().tolist()


def test_everybody_is_online_until_a_fleet_says_otherwise():
    view = View(round=1, seed=3, num_clients=10, clients_per_round=4, menu=MENU)
    assert view.online([7, 0]).tolist() == [True, True]
    assert view.sample(online=True).tolist() == view.sample().tolist()


def test_a_sample_of_who_is_online_holds_nobody_else_and_looks_at_few_of_many():
    asked = []

    def one_in_five(ids):
        asked.append(len(ids))
        return ids % 5 == 0

    view = View(round=1, seed=3, num_clients=10**6, clients_per_round=20, menu=MENU, is_online=one_in_five)
    chosen = view.sample(online=True)
    assert len(set(chosen.tolist())) == 20
    assert (chosen % 5 == 0).all()
    assert (chosen > 10**5).any()
    assert sum(asked) < 2000
    few = dataclasses.replace(view, num_clients=12)
    assert few.sample(online=True).tolist() == [0, 5, 10]
    assert (
        dataclasses.replace(view, is_online=lambda ids: ids < 0, num_clients=9).sample(online=True).size == 0
    )


@pytest.mark.parametrize("stranger", [-1, 10])
def test_online_knows_the_fleets_clients_only(stranger):
    view = View(round=1, seed=3, num_clients=10, clients_per_round=4, menu=MENU)
    with pytest.raises(PolicyError, match=f"asked about client {stranger}; ids are 0 to 9"):
        view.online([1, stranger])


@pytest.mark.parametrize(
    ("pace", "message"),
    [
        ({"goal": 0}, "pace.goal must be at least 1 or absent, found 0"),
        ({"concurrency": -1}, "pace.concurrency must be at least 1"),
        ({"deadline_seconds": 0.0}, "above 0 or absent, found 0.0"),
        ({"deadline_seconds": float("nan")}, "above 0 or absent, found nan"),
    ],
)
def test_a_pace_that_closes_no_round_is_refused(pace, message):
    with pytest.raises(ConfigError, match=message):
        Pace(**pace)


def test_largest_that_fits():
    assert answered("largest_that_fits", [5, 10, 22, 30, 99])[0] == [-1, HEAD, TOP_8, TOP_8, BOTH_8]


def test_everybody_smallest_gives_the_largest_that_fits_all_that_anything_fits():
    assert answered("everybody_smallest", [5, 22, 99])[0] == [-1, TOP_8, TOP_8]
    assert answered("everybody_smallest", [99, 99])[0] == [BOTH_8, BOTH_8]


def test_everybody_smallest_takes_the_sooner_done_of_equally_large_entries():
    menu = (MENU[TOP_8], dataclasses.replace(MENU[TOP_8], batch_size=4))
    choice, _ = answered("everybody_smallest", [99, 99], menu=menu, peaks=(20, 20), seconds=(3.0, 2.0))
    assert choice == [1, 1]


def test_everybody_smallest_serves_most_clients_where_no_entry_fits_all():
    # The second entry fits clients 0 and 1, the first only client 2: nothing nests.
    offers = dataclasses.replace(
        offers_of([1, 1, 1], menu=MENU[1:3], peaks=(0, 0), seconds=(1.0, 1.0)),
        fits=np.array([[False, False, True], [True, True, False]]),
    )
    choice, _ = load_policy("everybody_smallest").assign(cohort_of([1, 1, 1]), offers, {})
    assert choice.tolist() == [1, 1, -1]


def test_drop_weak_gives_the_biggest_entry_to_whom_it_fits():
    assert answered("drop_weak", [10, 32, 99])[0] == [-1, BOTH_8, BOTH_8]
    assert answered("drop_weak", [10, 22, 99], {"assignment": TOP_2})[0] == [-1, TOP_2, TOP_2]


def test_drop_weak_gives_less_if_too_few_can_run_the_biggest():
    # One of three can run the biggest, two can run rank 8 on the top block.
    assert answered("drop_weak", [10, 22, 99], {"min_share": 0.5})[0] == [-1, TOP_8, TOP_8]
    assert answered("drop_weak", [10, 22, 22])[0] == [-1, TOP_8, TOP_8]
    assert answered("drop_weak", [5, 22, 10], {"min_share": 0.9})[0] == [-1, HEAD, HEAD]
    assert answered("drop_weak", [5, 22, 22], {"min_share": 0.9})[0] == [-1, TOP_8, TOP_8]


def test_drop_weak_refuses_an_entry_that_is_not_on_the_menu():
    with pytest.raises(PolicyError, match="a menu index, 0 to 4; found 5"):
        answered("drop_weak", [99], {"assignment": 5})


def test_within_deadline_gives_the_largest_that_is_done_in_time():
    options = {"deadline_seconds": 4.0}
    assert answered("within_deadline", [22, 99], options)[0] == [TOP_8, TOP_8]
    assert answered("within_deadline", [99], {"deadline_seconds": 5.0})[0] == [BOTH_8]


def test_within_deadline_gives_the_fastest_to_whom_nothing_is_in_time_or_leaves_it_out():
    assert answered("within_deadline", [99, 5], {"deadline_seconds": 0.5})[0] == [HEAD, -1]
    assert answered("within_deadline", [99, 5], {"deadline_seconds": 0.5, "leave_out": True})[0] == [-1, -1]


def test_hetlora_parts_ranks_by_memory_and_asks_for_its_aggregation():
    choice, state = answered("hetlora", [99, 40, 50, 60])
    assert choice == [BOTH_8, BOTH_2, BOTH_2, BOTH_8]
    assert state["ranks"] == {0: 8, 1: 2, 2: 2, 3: 8}
    assert load_policy("hetlora").aggregation == "hetlora"


def test_hetlora_keeps_a_clients_first_rank():
    _, state = answered("hetlora", [99, 40])
    choice, state = answered("hetlora", [40, 30], state=state, client_ids=[1, 2])
    assert state["ranks"] == {0: 8, 1: 2, 2: 2}
    assert choice == [BOTH_2, BOTH_2]


def test_hetlora_gives_less_depth_where_its_rank_on_all_blocks_does_not_fit():
    # Client 0 may have rank 8: on both blocks only rank 2 fits, and depth goes first.
    assert answered("hetlora", [31, 25])[0] == [BOTH_2, TOP_2]


def test_hetlora_can_order_clients_by_their_link():
    # down_bps falls with the position.
    assert answered("hetlora", [99, 99], {"capacity": "down_bps"})[0] == [BOTH_8, BOTH_2]
    with pytest.raises(PolicyError, match=r"capacity is one of memory_bytes, .* found 'luck'"):
        answered("hetlora", [99], {"capacity": "luck"})


def test_hetlora_needs_ranks_on_the_menu():
    with pytest.raises(PolicyError, match="the menu holds no adapter"):
        answered("hetlora", [99], menu=MENU[:1], peaks=(10,), seconds=(1.0,))
