"""A policy's answer: whether it is one, and the words for what is wrong with it."""

from collections.abc import Sequence
from typing import NoReturn, TypeGuard

import numpy as np

from fedray.assignment import Assignment
from fedray.cost import MARGIN, Ints
from fedray.errors import DoesNotFit, PolicyError
from fedray.policy import LEAVE_OUT, Choice, Cohort, Offers
from fedray.units import show_bytes


def holds_assignments(answer: Choice) -> TypeGuard[Sequence[Assignment | None]]:
    """Whether the policy answered with assignments and Nones rather than with menu indices."""
    if not isinstance(answer, list | tuple) and not (
        isinstance(answer, np.ndarray) and answer.dtype == object
    ):
        return False
    return all(entry is None or isinstance(entry, Assignment) for entry in answer)


def integers(answer: object) -> Ints | None:
    """The answer as integers, [any]; None if it is something else (no number is rounded to fit)."""
    try:
        array = np.asarray(answer)
    except ValueError:  # rows of unlike length
        return None
    if array.shape == (0,):
        return np.zeros(0, np.int64)
    return array.astype(np.int64) if array.ndim == 1 and array.dtype.kind in "iu" else None


def described(answer: object) -> str:
    """For a message: what an array is, or the start of what something else looks like."""
    if isinstance(answer, np.ndarray):
        return f"an array of {answer.dtype}, shape {answer.shape}"
    text = repr(answer)
    return text if len(text) <= 60 else f"{text[:57]}..."


def checked_indices(answer: Choice, cohort: Cohort, offers: Offers) -> Ints:
    """The answer as menu indices that fit, [clients]. Raises PolicyError."""
    choice = integers(answer)
    if choice is None or len(choice) != len(cohort):
        raise PolicyError(
            f"assign returns {len(cohort)} integers, a menu index per client or -1 to leave it out; "
            f"found {described(answer)}."
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


def why_nothing_fits(cohort: Cohort, offers: Offers, position: int) -> str:
    """The words for a client that no offer fits: what the cheapest one needs, and what there is."""
    joules, spare = offers.joules[:, position], _spare_joules(cohort, position)
    if (offers.peak_bytes[:, position] * MARGIN <= cohort.device.memory_bytes[position]).any() and (
        spare < joules.min()
    ):
        row = int(joules.argmin())
        return (
            f"takes {joules[row]:.3g} J out of its battery at least ({offers.menu[row]}), which may spare "
            f"{max(spare, 0.0):.3g} J"
        )
    needed = np.ceil(offers.peak_bytes[:, position] * MARGIN)
    has, what = int(cohort.device.memory_bytes[position]), ""
    possible = needed <= has
    if possible.any():
        # Some entry is small enough for memory, so it is storage, or else the server, that lacks.
        needed = np.where(possible, offers.held_bytes[:, position], np.inf)
        has, what = int(cohort.device.storage_bytes[position]), " of storage"
        possible = needed <= has
    if possible.any():
        needed = np.where(possible, offers.server_bytes[:, position], np.inf)
        has, what = offers.server_room_bytes, " on the server beside its blocks"
    row = int(needed.argmin())
    least = f"needs {show_bytes(needed[row])}{what} at least ({offers.menu[row]})"
    return (
        f"{least}, has {show_bytes(has)}" if "server" not in what else f"{least}, which has {show_bytes(has)}"
    )


def _spare_joules(cohort: Cohort, position: int) -> float:
    return np.inf if cohort.spare_joules is None else float(cohort.spare_joules[position])


def why_left_out(cohort: Cohort, offers: Offers, position: int) -> str:
    """The words for a client that was given nothing."""
    if offers.fits[:, position].any():
        return "left out by the policy"
    return why_nothing_fits(cohort, offers, position)


def _refuse_unfit(cohort: Cohort, offers: Offers, position: int, row: int) -> NoReturn:
    device, joules = cohort.device, float(offers.joules[row, position])
    needs = (
        (int(np.ceil(offers.peak_bytes[row, position] * MARGIN)), device.memory_bytes[position], "of memory"),
        (int(offers.held_bytes[row, position]), device.storage_bytes[position], "of storage"),
        (
            int(offers.server_bytes[row, position]),
            offers.server_room_bytes,
            "on the server beside its blocks",
        ),
    )
    lacks = next((need for need in needs if need[0] > need[1]), None)
    if lacks is None:
        spare = max(_spare_joules(cohort, position), 0.0)
        wrong = f"takes {joules:.3g} J out of its battery, which may spare {spare:.3g} J"
    else:
        asked, has, what = lacks
        wrong = f"needs {show_bytes(asked)} {what}, there is {show_bytes(int(has))}"
    raise DoesNotFit(
        f"The policy gave client {cohort.client_ids[position]} ({cohort.device_class[position]}) an "
        f"assignment that does not fit: {offers.menu[row]} {wrong}. Choose where offers.fits is true."
    )
