"""The scheduler: prices a menu for a cohort, asks the policy, and checks what it answers.

It runs nothing and never sees a tensor: what an assignment costs comes from a callable that
somebody above fills with traces.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedray.answers import (
    checked_indices,
    described,
    holds_assignments,
    integers,
    why_left_out,
    why_nothing_fits,
)
from fedray.assignment import Assignment
from fedray.cost import MARGIN, Floats, Footprint, Ints, Middle, ServerShare, price_trips
from fedray.errors import NothingFits, PolicyError
from fedray.holdings import Holdings
from fedray.policy import LEAVE_OUT, Bools, Cohort, Decision, Offers, Policy, State, View
from fedray.price_sheet import FootprintOf, price_sheet, riders_of
from fedray.riders import Riders
from fedray.virtual_server import VirtualServer


@dataclass(frozen=True, slots=True, kw_only=True)
class Pricing:
    """What a menu is priced from.

    Attributes:
        footprint_of: what one step of an assignment costs at a shape.
        holdings: what clients hold already.
        server: that the clients' cuts share; None where no assignment may have a cut.
        aboard: what those take of it who are on their way already, where rounds overlap.
        goes_on: asks of an assignment which of these clients, [clients], kept their own side of its cut and
            so are sent nothing; None where nobody kept any.
    """

    footprint_of: FootprintOf
    holdings: Holdings
    server: VirtualServer | None = None
    aboard: Sequence[ServerShare] = ()
    goes_on: Callable[[Assignment, Ints], Bools] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What each client was given, as priced; arrays are [clients], 0 where a client is left out.

    ``virtual_seconds`` and ``server_seconds`` are those of a server without other clients; ``riders`` are
    what a virtual clock lets share one.
    """

    peak_bytes: Ints
    num_steps: Ints
    virtual_seconds: Floats
    compute_seconds: Floats
    joules: Floats
    up_bytes: Ints
    down_bytes: Ints
    provision_bytes: Ints
    held_bytes: Ints
    boundary_up_bytes: Ints
    boundary_down_bytes: Ints
    server_seconds: Floats
    server_bytes: Ints
    riders: Riders

    def take(self, index: Ints) -> "Terms":
        """The same for the clients at ``index``."""
        arrays = {name: getattr(self, name)[index] for name in self.__slots__ if name != "riders"}
        return Terms(riders=self.riders.take(index), **arrays)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A policy's answer after the check.

    Attributes:
        decision: what each client of the cohort does.
        terms: the prices of it.
        state: what the policy remembers.
        left_out: why a client does nothing this round, by client id.
        shares: what each client takes of the server, [clients]; None without a cut.
    """

    decision: Decision
    terms: Terms
    state: State
    left_out: Mapping[int, str]
    shares: Sequence[ServerShare | None]


def ask_menu(policy: Policy, view: View) -> tuple[Assignment, ...]:
    """The round's menu, without repeats. Raises PolicyError."""
    menu = policy.menu(view)
    if not isinstance(menu, Sequence):
        raise PolicyError(f"The policy's menu is a list of Assignments; found {described(menu)}.")
    strange = next((entry for entry in menu if not isinstance(entry, Assignment)), None)
    if strange is not None:
        raise PolicyError(f"A menu holds Assignments; the policy's holds {strange!r}.")
    if not menu:
        raise PolicyError(f"The policy's menu for round {view.round} is empty; give at least one Assignment.")
    return tuple(dict.fromkeys(menu))


def ask_selection(policy: Policy, view: View, state: State) -> tuple[Ints, State]:
    """The round's clients, [clients], in the policy's order, and its state. Raises PolicyError."""
    answer: object = policy.select(view, state)
    if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], Mapping):
        answer, state = answer
    ids = integers(answer)
    if ids is None:
        raise PolicyError(f"select returns client ids, one integer each; found {described(answer)}.")
    if not len(ids) and not view.may_ask_nobody:
        raise PolicyError(f"select chose nobody for round {view.round}; choose at least one client.")
    beyond = ids[(ids < 0) | (ids >= view.num_clients)]
    if len(beyond):
        raise PolicyError(f"select chose client {beyond[0]}; ids are 0 to {view.num_clients - 1}.")
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise PolicyError(f"select chose client {values[counts > 1][0]} more than once; give every id once.")
    return ids, state


def price_menu(menu: Sequence[Assignment], cohort: Cohort, pricing: Pricing) -> Offers:
    """Every entry of the menu priced for every client of the cohort.

    Clients of one work shape share a footprint, so the callable is asked once for each entry and shape, and
    for a shorter one where time is priced between the two. Memory is that of a client's longest row.
    An offer fits if its peak with `fedray.cost.MARGIN` stays within memory_bytes, the frozen parts it
    needs within storage_bytes, its joules within what the battery may spare, and what it takes of the server
    within the room beside the server's blocks.
    """
    sheet = price_sheet(menu, cohort, pricing.footprint_of, pricing.server)
    # What must be held, and how much is trained, is the same for every work shape.
    held = np.array([[sum(footprint.held_bytes.values())] for footprint in sheet.footprints])
    room_bytes = 0 if pricing.server is None else pricing.server.left_bytes(pricing.aboard)
    down_bytes = sheet.down_bytes
    if pricing.goes_on is not None:
        goes_on = np.stack([pricing.goes_on(entry, cohort.client_ids) for entry in menu])
        down_bytes = np.where(goes_on, 0, down_bytes)
    prices = price_trips(
        cohort.device,
        compute_seconds=sheet.compute_seconds,
        up_bytes=sheet.up_bytes,
        down_bytes=down_bytes,
        provision_bytes=_provision(menu, sheet.footprints, cohort, pricing.holdings),
        middle=Middle(
            seconds=sheet.middle_seconds,
            boundary_bytes=sheet.boundary_up_bytes + sheet.boundary_down_bytes,
        ),
    )
    in_memory = sheet.peak_bytes * MARGIN <= cohort.device.memory_bytes
    in_storage = held <= cohort.device.storage_bytes
    if cohort.spare_joules is not None:
        in_storage = in_storage & (prices.joules <= cohort.spare_joules)
    return Offers(
        menu=tuple(menu),
        fits=in_memory & in_storage & (sheet.server_bytes <= room_bytes),
        peak_bytes=sheet.peak_bytes,
        num_steps=sheet.num_steps,
        virtual_seconds=prices.virtual_seconds,
        compute_seconds=prices.compute_seconds,
        joules=prices.joules,
        up_bytes=sheet.up_bytes,
        down_bytes=down_bytes,
        provision_bytes=prices.provision_bytes,
        held_bytes=np.broadcast_to(held, sheet.peak_bytes.shape),
        boundary_up_bytes=sheet.boundary_up_bytes,
        boundary_down_bytes=sheet.boundary_down_bytes,
        server_seconds=sheet.server_seconds,
        server_bytes=sheet.server_bytes,
        server_room_bytes=room_bytes,
        sum_of_ranks=np.array([entry.sum_of_ranks for entry in menu], np.int64),
        trained_params=np.array([f.trained_params for f in sheet.footprints] or [0] * len(menu), np.int64),
    )


def decide(
    policy: Policy,
    cohort: Cohort,
    offers: Offers,
    state: State,
    pricing: Pricing,
    *,
    together: bool = True,
) -> Schedule:
    """Asks the policy, and checks its answer in the one place where no client can be given too much.

    Args:
        policy: what chooses.
        cohort: the round's clients.
        offers: the menu priced for them, by `price_menu`.
        state: what the policy remembers.
        pricing: prices assignments that the policy answers with and that are not on the menu.
        together: the cohort shares the server, which admits clients in their order and leaves out who
            finds no room; false where each is asked as if alone, as in a plan for a whole fleet.

    A cohort that nothing fits is left out as a whole, and the policy is not asked: another round's may
    fit. For the whole fleet there is `refuse_if_nothing_fits`.

    Raises:
        PolicyError: if the answer is not one known assignment, or none, for each client, or does not fit.
    """
    answer, new_state = (
        policy.assign(cohort, offers, state)
        if offers.fits.any()
        else (np.full(len(cohort), LEAVE_OUT), state)
    )
    if holds_assignments(answer):
        given, terms = _direct(answer, cohort, offers, pricing)
    else:
        choice = checked_indices(answer, cohort, offers)
        given = tuple(None if row == LEAVE_OUT else offers.menu[row] for row in choice)
        terms = _terms(offers, choice)
    reasons = {i: why_left_out(cohort, offers, i) for i, entry in enumerate(given) if entry is None}
    riders, shares = riders_of(given, cohort, pricing.footprint_of)
    if together and pricing.server is not None:
        refused = pricing.server.refused(shares, pricing.aboard)
        reasons |= refused
        stays = np.array([i not in refused for i in range(len(cohort))], np.bool_)
        given = tuple(entry if stay else None for entry, stay in zip(given, stays, strict=True))
        terms = {name: np.where(stays, column, 0) for name, column in terms.items()}
        riders = riders.only(stays)
    ids = tuple(cohort.client_ids.tolist())
    return Schedule(
        decision=Decision(client_ids=ids, assignments=given),
        terms=Terms(**terms, riders=riders),
        state=new_state,
        left_out={ids[i]: reason for i, reason in sorted(reasons.items())},
        shares=shares,
    )


def refuse_if_nothing_fits(cohort: Cohort, offers: Offers) -> None:
    """Raises NothingFits, with the numbers of the client with most memory, if no offer fits anybody."""
    if offers.fits.any():
        return
    most = int(np.argmax(cohort.device.memory_bytes))
    raise NothingFits(
        f"None of {len(offers.menu)} assignments fits any of {len(cohort)} clients: client "
        f"{cohort.client_ids[most]} ({cohort.device_class[most]}), which has the most memory, "
        f"{why_nothing_fits(cohort, offers, most)}. To fix: add a smaller depth, batch size (now at least "
        f"{min(entry.batch_size for entry in offers.menu)}) or recompute = true to the menu, shorten the "
        f"rows (now {cohort.tokens[most]} tokens), or raise the share of memory the job may use."
    )


def _provision(
    menu: Sequence[Assignment], footprints: Sequence[Footprint], cohort: Cohort, holdings: Holdings
) -> Ints:
    """Bytes that must still reach each client, [menu, clients]; entries holding the same share a look-up."""
    if not len(cohort):  # nobody has a footprint either
        return np.zeros((len(menu), 0), np.int64)
    known: dict[object, Ints] = {}
    rows = []
    for entry, footprint in zip(menu, footprints, strict=True):
        key = (entry.dtype, *footprint.held_bytes.items())
        if key not in known:
            known[key] = holdings.missing_bytes(cohort.client_ids, footprint.held_bytes, entry.dtype)
        rows.append(known[key])
    return np.stack(rows)


def _terms(offers: Offers, choice: Ints) -> dict[str, NDArray[Any]]:
    rows, clients = np.maximum(choice, 0), np.arange(len(choice))
    return {
        name: np.where(choice == LEAVE_OUT, 0, getattr(offers, name)[rows, clients])
        for name in Terms.__slots__
        if name != "riders"
    }


def _direct(
    answer: Sequence[Assignment | None], cohort: Cohort, offers: Offers, pricing: Pricing
) -> tuple[tuple[Assignment | None, ...], dict[str, NDArray[Any]]]:
    """Checks assignments given as such; those that are not on the menu are priced for their clients alone."""
    if len(answer) != len(cohort):
        raise PolicyError(
            f"assign returns an Assignment or None per client: {len(cohort)} clients, {len(answer)} answers."
        )
    on_menu = {entry: row for row, entry in enumerate(offers.menu)}
    rows = [LEAVE_OUT if entry is None else on_menu.get(entry, LEAVE_OUT) for entry in answer]
    choice = np.array(rows, np.int64)
    terms = _terms(offers, checked_indices(choice, cohort, offers))
    for entry in dict.fromkeys(entry for entry in answer if entry is not None and entry not in on_menu):
        takers = np.array([position for position, given in enumerate(answer) if given == entry], np.int64)
        part = cohort.take(takers)
        own = price_menu((entry,), part, pricing)
        for name, column in _terms(own, checked_indices(np.zeros(len(part), np.int64), part, own)).items():
            terms[name][takers] = column
    return tuple(answer), terms
