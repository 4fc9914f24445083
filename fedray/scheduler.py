"""The scheduler: prices a menu for a cohort, asks the policy, and checks what it answers.

It runs nothing and never sees a tensor: what an assignment costs comes from a callable that
somebody above fills with traces.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeGuard

import numpy as np
from numpy.typing import NDArray

from fedray.assignment import ATTENTIONS, Assignment, Attention
from fedray.cost import MARGIN, Device, Floats, Footprint, Ints, WorkShape, price_trips
from fedray.errors import NothingFits, PolicyError
from fedray.holdings import Holdings
from fedray.policy import LEAVE_OUT, Choice, Cohort, Decision, Offers, Policy, State, View
from fedray.units import show_bytes

FootprintOf = Callable[[Assignment, WorkShape], Footprint]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pricing:
    """What a menu is priced from: the footprint of an assignment at a shape, and what clients hold."""

    footprint_of: FootprintOf
    holdings: Holdings


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What each client was given, as priced; arrays are [clients], 0 where a client is left out."""

    peak_bytes: Ints
    num_steps: Ints
    virtual_seconds: Floats
    compute_seconds: Floats
    joules: Floats
    up_bytes: Ints
    down_bytes: Ints
    provision_bytes: Ints
    held_bytes: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A policy's answer after the check.

    Attributes:
        decision: what each client of the cohort does.
        terms: the prices of it.
        state: what the policy remembers.
        left_out: why a client does nothing this round, by client id.
    """

    decision: Decision
    terms: Terms
    state: State
    left_out: Mapping[int, str]


def ask_menu(policy: Policy, view: View) -> tuple[Assignment, ...]:
    """The round's menu, without repeats. Raises PolicyError."""
    menu = policy.menu(view)
    if not isinstance(menu, Sequence):
        raise PolicyError(f"The policy's menu is a list of Assignments; found {_described(menu)}.")
    strange = next((entry for entry in menu if not isinstance(entry, Assignment)), None)
    if strange is not None:
        raise PolicyError(f"A menu holds Assignments; the policy's holds {strange!r}.")
    if not menu:
        raise PolicyError(f"The policy's menu for round {view.round} is empty; give at least one Assignment.")
    return tuple(dict.fromkeys(menu))


def ask_selection(policy: Policy, view: View, state: State) -> Ints:
    """The round's clients, [clients], in the policy's order. Raises PolicyError."""
    answer = policy.select(view, state)
    ids = _integers(answer)
    if ids is None:
        raise PolicyError(f"select returns client ids, one integer each; found {_described(answer)}.")
    if not len(ids):
        raise PolicyError(f"select chose nobody for round {view.round}; choose at least one client.")
    beyond = ids[(ids < 0) | (ids >= view.num_clients)]
    if len(beyond):
        raise PolicyError(f"select chose client {beyond[0]}; ids are 0 to {view.num_clients - 1}.")
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise PolicyError(f"select chose client {values[counts > 1][0]} more than once; give every id once.")
    return ids


def price_menu(menu: Sequence[Assignment], cohort: Cohort, pricing: Pricing) -> Offers:
    """Every entry of the menu priced for every client of the cohort.

    Clients of one work shape share a footprint, so the callable is asked once for each entry and shape.
    An offer fits if its peak with `fedray.cost.MARGIN` stays within memory_bytes and the frozen parts it
    needs within storage_bytes.
    """
    shape = len(menu), len(cohort)
    peak, up, down = (np.zeros(shape, np.int64) for _ in range(3))
    step_seconds = np.zeros(shape)
    footprints: list[Footprint] = []
    for shared in _shapes(cohort):
        footprints = [pricing.footprint_of(entry, shared.work(entry)) for entry in menu]
        at = shared.clients
        peak[:, at] = np.array([[footprint.peak_bytes] for footprint in footprints])
        up[:, at] = np.array([[footprint.up_bytes] for footprint in footprints])
        down[:, at] = np.array([[footprint.down_bytes] for footprint in footprints])
        for row, (entry, footprint) in enumerate(zip(menu, footprints, strict=True)):
            rate = shared.device.flops_per_s[entry.dtype]
            step_seconds[row, at] = footprint.roofline.seconds(rate, shared.device.memory_bytes_per_s)
    # What must be held, and how much is trained, is the same for every work shape: the last one tells.
    held = np.array([[sum(footprint.held_bytes.values())] for footprint in footprints])
    num_steps = np.stack([_num_steps(entry, cohort.num_rows) for entry in menu])
    prices = price_trips(
        cohort.device,
        compute_seconds=num_steps * step_seconds,
        up_bytes=up,
        down_bytes=down,
        provision_bytes=_provision(menu, footprints, cohort, pricing.holdings),
    )
    in_memory = peak * MARGIN <= cohort.device.memory_bytes
    return Offers(
        menu=tuple(menu),
        fits=in_memory & (held <= cohort.device.storage_bytes),
        peak_bytes=peak,
        num_steps=num_steps,
        virtual_seconds=prices.virtual_seconds,
        compute_seconds=prices.compute_seconds,
        joules=prices.joules,
        up_bytes=up,
        down_bytes=down,
        provision_bytes=prices.provision_bytes,
        held_bytes=np.broadcast_to(held, shape),
        sum_of_ranks=np.array([entry.sum_of_ranks for entry in menu], np.int64),
        trained_params=np.array([footprint.trained_params for footprint in footprints], np.int64),
    )


def decide(policy: Policy, cohort: Cohort, offers: Offers, state: State, pricing: Pricing) -> Schedule:
    """Asks the policy, and checks its answer in the one place where no client can be given too much.

    Args:
        policy: what chooses.
        cohort: the round's clients.
        offers: the menu priced for them, by `price_menu`.
        state: what the policy remembers.
        pricing: prices assignments that the policy answers with and that are not on the menu.

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
    if _holds_assignments(answer):
        given, terms = _direct(answer, cohort, offers, pricing)
    else:
        choice = _checked_indices(answer, cohort, offers)
        given = tuple(None if row == LEAVE_OUT else offers.menu[row] for row in choice)
        terms = _terms(offers, choice)
    reasons = {
        int(cohort.client_ids[i]): _why_left_out(cohort, offers, i)
        for i, assignment in enumerate(given)
        if assignment is None
    }
    ids = tuple(cohort.client_ids.tolist())
    decision = Decision(client_ids=ids, assignments=given)
    return Schedule(decision=decision, terms=Terms(**terms), state=new_state, left_out=reasons)


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


def why_nothing_fits(cohort: Cohort, offers: Offers, position: int) -> str:
    """The words for a client that no offer fits: what the cheapest one needs, and what the client has."""
    needed, what = np.ceil(offers.peak_bytes[:, position] * MARGIN), ""
    has = cohort.device.memory_bytes[position]
    if needed.min() <= has:
        # Some entry is small enough for memory, so it is storage that every such entry exceeds.
        needed, what = np.where(needed <= has, offers.held_bytes[:, position], np.inf), " of storage"
        has = cohort.device.storage_bytes[position]
    row = int(needed.argmin())
    return f"needs {show_bytes(needed[row])}{what} at least ({offers.menu[row]}), has {show_bytes(int(has))}"


def _why_left_out(cohort: Cohort, offers: Offers, position: int) -> str:
    if offers.fits[:, position].any():
        return "left out by the policy"
    return why_nothing_fits(cohort, offers, position)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """The clients of a cohort that pad to the same tokens and run the same kernel."""

    clients: Ints
    tokens: int
    attention: Attention
    device: Device

    def work(self, entry: Assignment) -> WorkShape:
        return WorkShape(rows=entry.batch_size, tokens=self.tokens, attention=self.attention)


def _shapes(cohort: Cohort) -> Iterator[_Shape]:
    for attention in ATTENTIONS:
        alike = cohort.attention == attention
        for tokens in np.unique(cohort.tokens[alike]).tolist():
            clients = np.flatnonzero(alike & (cohort.tokens == tokens))
            device = cohort.device.take(clients)
            yield _Shape(clients=clients, tokens=tokens, attention=attention, device=device)


def _num_steps(entry: Assignment, num_rows: Ints) -> Ints:
    if entry.max_steps is not None:
        return np.full(len(num_rows), entry.max_steps, np.int64)
    return entry.num_epochs * -(-num_rows // entry.batch_size)


def _provision(
    menu: Sequence[Assignment], footprints: Sequence[Footprint], cohort: Cohort, holdings: Holdings
) -> Ints:
    """Bytes that must still reach each client, [menu, clients]; entries holding the same share a look-up."""
    known: dict[object, Ints] = {}
    rows = []
    for entry, footprint in zip(menu, footprints, strict=True):
        key = (entry.dtype, *footprint.held_bytes.items())
        if key not in known:
            known[key] = holdings.missing_bytes(cohort.client_ids, footprint.held_bytes, entry.dtype)
        rows.append(known[key])
    return np.stack(rows)


def _holds_assignments(answer: Choice) -> TypeGuard[Sequence[Assignment | None]]:
    """Whether the policy answered with assignments and Nones rather than with menu indices."""
    if not isinstance(answer, list | tuple) and not (
        isinstance(answer, np.ndarray) and answer.dtype == object
    ):
        return False
    return all(entry is None or isinstance(entry, Assignment) for entry in answer)


def _integers(answer: object) -> Ints | None:
    """The answer as integers, [any]; None if it is something else (no number is rounded to fit)."""
    try:
        array = np.asarray(answer)
    except ValueError:  # rows of unlike length
        return None
    if array.shape == (0,):
        return np.zeros(0, np.int64)
    return array.astype(np.int64) if array.ndim == 1 and array.dtype.kind in "iu" else None


def _described(answer: object) -> str:
    if isinstance(answer, np.ndarray):
        return f"an array of {answer.dtype}, shape {answer.shape}"
    text = repr(answer)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _checked_indices(answer: Choice, cohort: Cohort, offers: Offers) -> Ints:
    choice = _integers(answer)
    if choice is None or len(choice) != len(cohort):
        raise PolicyError(
            f"assign returns {len(cohort)} integers, a menu index per client or -1 to leave it out; "
            f"found {_described(answer)}."
        )
    beyond = np.flatnonzero((choice < LEAVE_OUT) | (choice >= len(offers.menu)))
    if len(beyond):
        raise PolicyError(
            f"The policy gave client {cohort.client_ids[beyond[0]]} the menu index {choice[beyond[0]]}; the "
            f"menu has {len(offers.menu)} entries, so indices are -1 (leave out) to {len(offers.menu) - 1}."
        )
    given = np.flatnonzero(choice != LEAVE_OUT)
    unfit = given[~offers.fits[choice[given], given]]
    if len(unfit):
        _refuse_unfit(cohort, offers, int(unfit[0]), int(choice[unfit[0]]))
    return choice


def _refuse_unfit(cohort: Cohort, offers: Offers, position: int, row: int) -> NoReturn:
    asked = int(np.ceil(offers.peak_bytes[row, position] * MARGIN))
    has, what = cohort.device.memory_bytes, "memory"
    if asked <= has[position]:
        asked, has, what = int(offers.held_bytes[row, position]), cohort.device.storage_bytes, "storage"
    raise PolicyError(
        f"The policy gave client {cohort.client_ids[position]} ({cohort.device_class[position]}) an "
        f"assignment that does not fit: {offers.menu[row]} needs {show_bytes(asked)} of {what}, there is "
        f"{show_bytes(int(has[position]))}. Choose where offers.fits is true."
    )


def _terms(offers: Offers, choice: Ints) -> dict[str, NDArray[Any]]:
    rows, clients = np.maximum(choice, 0), np.arange(len(choice))
    return {
        name: np.where(choice == LEAVE_OUT, 0, getattr(offers, name)[rows, clients])
        for name in Terms.__slots__
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
    terms = _terms(offers, _checked_indices(choice, cohort, offers))
    for entry in dict.fromkeys(entry for entry in answer if entry is not None and entry not in on_menu):
        takers = np.array([position for position, given in enumerate(answer) if given == entry], np.int64)
        part = cohort.take(takers)
        own = price_menu((entry,), part, pricing)
        for name, column in _terms(own, _checked_indices(np.zeros(len(part), np.int64), part, own)).items():
            terms[name][takers] = column
    return tuple(answer), terms
