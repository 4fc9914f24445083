"""Offers and the check of a policy's answer: no client can be given more than it has (L11)."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.assignment import Assignment, HeadOnly, Lora, lora_on_top
from fedray.cost import Device, Footprint, PeakTerms, Roofline, WorkShape, price
from fedray.errors import NothingFits, PolicyError
from fedray.holdings import Holdings
from fedray.menu import Grid, build_menu
from fedray.policy import Cohort, View
from fedray.scheduler import Pricing, ask_menu, ask_selection, decide, price_menu, refuse_if_nothing_fits

MIB = 1024**2
TARGETS = ("query",)
MENU = build_menu(Grid(num_blocks=6, targets=TARGETS, ranks=(2, 8), depths=(1, "all")))
ONE_BLOCK_RANK_2, ONE_BLOCK_RANK_8, ALL_RANK_2, ALL_RANK_8 = MENU
WORK = WorkShape(rows=8, tokens=32, attention="memory_efficient")
HELD = {"stem": 20 * MIB, "head": 1 * MIB}


def footprint_of(assignment, work):
    """In place of traces: 40 MiB, 8 for each trained block, 1 for each unit of rank, more for longer rows."""
    peak_bytes = (40 + 8 * assignment.num_trained_blocks + assignment.sum_of_ranks) * MIB * work.tokens // 32
    if work.attention == "eager":
        peak_bytes += MIB
    return Footprint(
        peak_bytes=peak_bytes,
        terms=PeakTerms(weights=peak_bytes, adapters=0, gradients=0, optimizer=0, activations=0, logits=0),
        forward_flops=10**9,
        backward_flops=10**9,
        moved_bytes=10**6,
        roofline=Roofline([work.rows * work.tokens * 1e7, 1e8], [1e6, 1e8]),
        up_bytes=1000 * assignment.sum_of_ranks,
        down_bytes=2000 * assignment.sum_of_ranks,
        held_bytes=HELD,
        trained_params=250 * assignment.sum_of_ranks,
    )


def cohort_of(memory_mib, *, tokens=32, attention="memory_efficient", storage_mib=1000):
    count = len(memory_mib)
    many = np.ones(count)
    return Cohort(
        round=1,
        seed=0,
        client_ids=np.arange(count) + 10,
        device_class=np.array(["phone"] * count),
        device=Device(
            memory_bytes=np.array(memory_mib, np.int64) * MIB,
            storage_bytes=np.broadcast_to(np.array(storage_mib, np.int64) * MIB, count),
            flops_per_s={"fp32": np.linspace(1e9, 2e9, count), "bf16": 2e9 * many},
            memory_bytes_per_s=1e9 * many,
            up_bps=1e6 * many,
            down_bps=1e7 * many,
            rtt_seconds=0.1 * many,
            compute_watts=5 * many,
            idle_watts=1 * many,
            radio_joules_per_byte=1e-6 * many,
        ),
        num_rows=np.arange(count) * 8 + 8,
        tokens=np.broadcast_to(np.array(tokens), count),
        attention=np.broadcast_to(np.array(attention), count),
    )


def pricing_of(footprints=footprint_of, **options):
    return Pricing(footprint_of=footprints, holdings=Holdings(2000, **options))


class Answers:
    """A policy that gives the answer it was made with."""

    aggregation = None
    pace = None

    def __init__(self, answer, *, menu=MENU, ids=(0,)):
        self.answer, self.own_menu, self.ids = answer, menu, ids

    def menu(self, view):
        return self.own_menu

    def select(self, view, state):
        return self.ids

    def assign(self, cohort, offers, state):
        return self.answer, {**state, "asked": True}

    def observe(self, records, state):
        return state


def decided(answer, cohort, pricing=None):
    pricing = pricing or pricing_of()
    return decide(Answers(answer), cohort, price_menu(MENU, cohort, pricing), {}, pricing)


def test_a_peak_of_50_mib_fits_51_mib_of_memory_but_not_50():
    # Rank 2 on one block peaks at 40 + 8 + 2 MiB, and 50 * 1.02 is 51.
    offers = price_menu(MENU, cohort_of([50, 51, 1000]), pricing_of())
    assert offers.peak_bytes[0].tolist() == [50 * MIB] * 3
    assert offers.fits[0].tolist() == [False, True, True]
    assert offers.fits[3].tolist() == [False, False, True]


def test_every_offer_is_what_pricing_one_client_alone_says():
    cohort = cohort_of(
        [60, 500, 90, 500], tokens=[32, 64, 64, 32], attention=["eager", "eager"] + ["memory_efficient"] * 2
    )
    pricing = pricing_of()
    pricing.holdings.receive(np.array([11]), HELD, "fp32", np.array([10**9]))
    offers = price_menu(MENU, cohort, pricing)
    for client in range(4):
        alone = cohort.take(np.array([client]))
        one = price_menu(MENU, alone, pricing)
        for name in (
            "fits",
            "peak_bytes",
            "num_steps",
            "virtual_seconds",
            "joules",
            "provision_bytes",
            "held_bytes",
        ):
            assert getattr(one, name)[:, 0].tolist() == getattr(offers, name)[:, client].tolist(), name
    assert offers.peak_bytes[0].tolist() == [51 * MIB, 101 * MIB, 100 * MIB, 50 * MIB]
    assert offers.provision_bytes[0].tolist() == [21 * MIB, 0, 21 * MIB, 21 * MIB]
    assert offers.num_steps[0].tolist() == [1, 2, 3, 4]


def test_offers_carry_the_numbers_of_the_plain_price():
    cohort, pricing = cohort_of([500] * 5), pricing_of()
    offers = price_menu(MENU, cohort, pricing)
    for row, entry in enumerate(MENU):
        footprint = footprint_of(entry, WORK)
        plain = price(footprint, "fp32", cohort.device, offers.num_steps[row], offers.provision_bytes[row])
        assert offers.virtual_seconds[row] == pytest.approx(plain.virtual_seconds)
        assert offers.joules[row] == pytest.approx(plain.joules)
        assert offers.up_bytes[row].tolist() == plain.up_bytes.tolist()
    assert offers.sum_of_ranks.tolist() == [2, 8, 12, 48]
    assert offers.trained_params.tolist() == [500, 2000, 3000, 12000]


def test_each_entry_and_shape_is_asked_for_once():
    asked = []
    cohort = cohort_of([500] * 30, tokens=[32, 64, 96] * 10)
    price_menu(
        MENU, cohort, pricing_of(lambda entry, work: asked.append((entry, work)) or footprint_of(entry, work))
    )
    assert len(asked) == len(set(asked)) == 12


def test_what_a_client_holds_already_is_not_paid_for_again():
    pricing = pricing_of()
    first = decided([0, 0], cohort_of([500, 500]), pricing)
    pricing.holdings.receive(np.array([10]), HELD, "fp32", np.array([10**9]))
    second = decided([0, 0], cohort_of([500, 500]), pricing)
    assert first.terms.provision_bytes.tolist() == [21 * MIB, 21 * MIB]
    assert second.terms.provision_bytes.tolist() == [0, 21 * MIB]
    assert second.terms.virtual_seconds[0] < first.terms.virtual_seconds[0]


def test_frozen_parts_beyond_the_storage_do_not_fit():
    offers = price_menu(MENU, cohort_of([500, 500], storage_mib=[20, 21]), pricing_of())
    assert offers.fits.any(axis=0).tolist() == [False, True]


def test_a_choice_becomes_assignments_and_their_terms():
    schedule = decided(np.array([3, -1, 0]), cohort_of([500, 500, 60]))
    assert schedule.decision.client_ids == (10, 11, 12)
    assert schedule.decision.assignments == (ALL_RANK_8, None, ONE_BLOCK_RANK_2)
    assert schedule.terms.peak_bytes.tolist() == [136 * MIB, 0, 50 * MIB]
    assert schedule.terms.num_steps.tolist() == [1, 0, 3]
    assert schedule.terms.up_bytes.tolist() == [48000, 0, 2000]
    assert schedule.left_out == {11: "left out by the policy"}
    assert schedule.state == {"asked": True}


def test_a_client_that_nothing_fits_is_told_why():
    schedule = decided([3, -1, -1], cohort_of([500, 48, 500], storage_mib=[1000, 1000, 20]))
    assert schedule.left_out == {
        11: "needs 51.0 MiB at least (rank 2 on 1 of 6 blocks, batch 8), has 48.0 MiB",
        12: "needs 21.0 MiB of storage at least (rank 2 on 1 of 6 blocks, batch 8), has 20.0 MiB",
    }


def test_a_policy_may_answer_with_assignments_on_the_menu_or_not():
    own = Assignment(blocks=tuple(range(6)), adapter=Lora(ranks=(4, 0, 0, 0, 0, 0), targets=TARGETS))
    schedule = decided([own, ALL_RANK_8, None, own], cohort_of([500] * 4))
    assert schedule.decision.assignments == (own, ALL_RANK_8, None, own)
    assert schedule.terms.peak_bytes.tolist() == [52 * MIB, 136 * MIB, 0, 52 * MIB]
    assert schedule.terms.up_bytes.tolist() == [4000, 48000, 0, 4000]


def test_an_assignment_off_the_menu_is_priced_like_one_on_it():
    cohort, pricing = cohort_of([500] * 3, tokens=[32, 64, 32]), pricing_of()
    on_menu = decide(Answers([3, 3, 3]), cohort, price_menu(MENU, cohort, pricing), {}, pricing)
    off_menu = decide(Answers([ALL_RANK_8] * 3), cohort, price_menu(MENU[:1], cohort, pricing), {}, pricing)
    for name in set(type(on_menu.terms).__slots__) - {"riders"}:
        assert getattr(on_menu.terms, name).tolist() == getattr(off_menu.terms, name).tolist()


def test_an_assignment_off_the_menu_must_fit_too():
    big = Assignment(blocks=tuple(range(6)), adapter=lora_on_top(6, 6, 64, targets=TARGETS))
    with pytest.raises(
        PolicyError, match=r"client 11 \(phone\) .* needs 481\.4 MiB of memory, there is 60\.0 MiB"
    ):
        decided([None, big], cohort_of([500, 60]))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            [0, 3],
            r"client 11 \(phone\) .* rank 8 on all 6 blocks, batch 8 needs 138\.7 MiB of memory, there is 60",
        ),
        ([0, 4], "gave client 11 the menu index 4; the menu has 4 entries, so indices are -1 .* to 3"),
        ([-2, 0], "gave client 10 the menu index -2"),
        ([0], r"assign returns 2 integers, .* found \[0\]"),
        (np.array([0.0, 1.0]), r"found an array of float64, shape \(2,\)"),
        ([True, False], r"found \[True, False\]"),
        (None, "found None"),
        ("ab", "found 'ab'"),
        ([0, ONE_BLOCK_RANK_2], "menu index per client"),
        ([ONE_BLOCK_RANK_2], "an Assignment or None per client: 2 clients, 1 answers"),
        ([[0, 1], [2]], "menu index per client"),
    ],
)
def test_an_answer_that_cannot_be_carried_out_is_refused(answer, message):
    with pytest.raises(PolicyError, match=message):
        decided(answer, cohort_of([500, 60]))


def test_storage_is_named_where_storage_is_what_lacks():
    with pytest.raises(PolicyError, match=r"needs 21\.0 MiB of storage, there is 5\.0 MiB"):
        decided([0, 0], cohort_of([500, 500], storage_mib=[1000, 5]))


def test_if_nothing_fits_anybody_the_sentence_has_the_numbers_and_the_way_out():
    cohort = cohort_of([20, 45, 30], tokens=32)
    with pytest.raises(NothingFits) as refusal:
        refuse_if_nothing_fits(cohort, price_menu(MENU, cohort, pricing_of()))
    assert str(refusal.value) == (
        "None of 4 assignments fits any of 3 clients: client 11 (phone), which has the most memory, needs "
        "51.0 MiB at least (rank 2 on 1 of 6 blocks, batch 8), has 45.0 MiB. To fix: add a smaller depth, "
        "batch size (now at least 8) or recompute = true to the menu, shorten the rows (now 32 tokens), or "
        "raise the share of memory the job may use."
    )


def test_a_cohort_that_nothing_fits_is_left_out_and_the_policy_is_not_asked():
    cohort = cohort_of([20, 45, 30])
    pricing = pricing_of()
    state = {"kept": 3}
    refusing = Answers("no choice at all")
    schedule = decide(refusing, cohort, price_menu(MENU, cohort, pricing), state, pricing)
    assert schedule.decision.assignments == (None, None, None)
    assert schedule.state is state
    assert schedule.terms.virtual_seconds.tolist() == [0, 0, 0]
    assert all(reason.startswith("needs 51.0 MiB at least") for reason in schedule.left_out.values())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(30, 200), st.integers(-1, 3)), min_size=1, max_size=6))
def test_whatever_a_policy_answers_no_client_exceeds_its_memory(clients):
    memory_mib, answer = zip(*clients, strict=True)
    cohort = cohort_of(list(memory_mib))
    try:
        schedule = decided(list(answer), cohort)
    except PolicyError:
        peaks = [0 if row < 0 else footprint_of(MENU[row], WORK).peak_bytes for row in answer]
        too_much = [peak * 1.02 > memory * MIB for peak, memory in zip(peaks, memory_mib, strict=True)]
        assert any(too_much)
    else:
        assert (schedule.terms.peak_bytes * 1.02 <= cohort.device.memory_bytes).all()


def view_of(num_clients=5):
    return View(round=3, seed=0, num_clients=num_clients, clients_per_round=2, menu=MENU)


def test_a_menu_without_repeats_is_asked_of_the_policy():
    assert ask_menu(Answers(None, menu=[ALL_RANK_8, ALL_RANK_2, ALL_RANK_8]), view_of()) == (
        ALL_RANK_8,
        ALL_RANK_2,
    )


@pytest.mark.parametrize(
    ("menu", "message"),
    [([], "menu for round 3 is empty"), ([8], "the policy's holds 8"), (None, "found None")],
)
def test_a_menu_that_is_none_is_refused(menu, message):
    with pytest.raises(PolicyError, match=message):
        ask_menu(Answers(None, menu=menu), view_of())


def test_a_selection_keeps_the_policys_order_and_may_say_what_it_remembers():
    ids, state = ask_selection(Answers(None, ids=[4, 0, 2]), view_of(), {"kept": 1})
    assert (ids.tolist(), state) == ([4, 0, 2], {"kept": 1})
    ids, state = ask_selection(Answers(None, ids=([3, 1], {"asked": 2})), view_of(), {"kept": 1})
    assert (ids.tolist(), state) == ([3, 1], {"asked": 2})


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "chose nobody for round 3"),
        ([0, 5], "chose client 5; ids are 0 to 4"),
        ([-1], "chose client -1"),
        ([1, 2, 1], "chose client 1 more than once"),
        ([0.5], r"found \[0.5\]"),
        (3, "found 3"),
        ([True], r"found \[True\]"),
    ],
)
def test_a_selection_that_names_no_clients_is_refused(ids, message):
    with pytest.raises(PolicyError, match=message):
        ask_selection(Answers(None, ids=ids), view_of(), {})


def test_a_thousand_clients_and_32_entries_are_priced_in_milliseconds():
    menu = build_menu(
        Grid(num_blocks=6, targets=TARGETS, ranks=(2, 4, 8, 16), depths=(1, 2, 4, 6), recompute=(False, True))
    )
    cohort, known = cohort_of([500] * 1000, tokens=[32, 64, 96, 128] * 250), {}

    def cached(entry, work):
        if (entry, work) not in known:
            known[entry, work] = footprint_of(entry, work)
        return known[entry, work]

    pricing = pricing_of(cached)
    price_menu(menu, cohort, pricing)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        price_menu(menu, cohort, pricing)
        seconds.append(time.perf_counter() - start)
    assert len(menu) == 32
    # About 5 ms on one idle core; the ceiling leaves room for a busy one.
    assert min(seconds) < 0.1


def test_the_head_alone_can_be_on_the_menu():
    cohort, pricing = cohort_of([500]), pricing_of()
    head = Assignment(blocks=tuple(range(6)), adapter=HeadOnly())
    schedule = decide(Answers([0]), cohort, price_menu([head], cohort, pricing), {}, pricing)
    assert schedule.terms.peak_bytes.tolist() == [40 * MIB]
