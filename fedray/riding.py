"""What clients spent riding a virtual server until some moment: rounds close, and clients leave, midway."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedray.cost import Device, Floats, Ints
from fedray.riders import Leg, Riders
from fedray.timetable import Timetable, Travellers


@dataclass(frozen=True, slots=True, kw_only=True)
class SpentRiding:
    """What clients spent between receiving and sending until some moment; arrays are [clients].

    Attributes:
        compute_seconds: of their own arithmetic.
        waiting_seconds: for the server: from a step's boarding to its sweep's end, or, where a client
            needs no answer, from its own end to the server's.
        up_bytes: over the cut; ``down_bytes`` too.
        num_messages: over the cut, that had arrived.
    """

    compute_seconds: Floats
    waiting_seconds: Floats
    up_bytes: Ints
    down_bytes: Ints
    num_messages: Ints


def spent_riding(table: Timetable, who: Travellers, until_seconds: Floats) -> SpentRiding:
    """Each client's rides until its own moment, [clients]; all of them once it is finished."""
    riders = who.riders
    rows = [_spent(table, who, client, until) for client, until in enumerate(until_seconds.tolist())]
    compute, waiting, up, down, messages = np.array(rows, np.float64).reshape(-1, 5).T
    done = until_seconds >= table.finish_seconds
    # What a finished client spent is said outright, or rounding could leave its last byte on the way.
    return SpentRiding(
        compute_seconds=np.where(done, riders.compute_seconds, compute),
        waiting_seconds=waiting,
        up_bytes=np.where(done, riders.up_bytes, up).astype(np.int64),
        down_bytes=np.where(done, riders.down_bytes, down).astype(np.int64),
        num_messages=np.where(done, riders.num_messages, messages).astype(np.int64),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Steps:
    """One client's steps as far as they came; arrays are [steps], infinity for what did not come.

    Attributes:
        begins: when its forward starts; ``boards`` when all of it has arrived at the server.
        tops: when its sweep was at the top; ``turns`` when its tail starts, ``turned`` when what that sends
            has arrived.
        swept: when its sweep ended; ``returns`` when the client's backward starts.
        waited_seconds: for the server.
    """

    begins: Floats
    boards: Floats
    tops: Floats
    turns: Floats
    turned: Floats
    swept: Floats
    returns: Floats
    waited_seconds: float


def _spent(
    table: Timetable, who: Travellers, client: int, until: float
) -> tuple[float, float, float, float, float]:
    """Of one client: seconds computing and waiting, bytes up and down, messages."""
    one = np.array([client])
    rider, device = who.riders.take(one), who.device.take(one)
    if not rider.num_steps[0]:
        return 0.0, 0.0, 0.0, 0.0, 0.0
    start = float(who.start_seconds[client])
    if rider.waits[0]:
        steps = _in_turn(rider, device, start, (table.step_tops[client], table.step_ends[client]), until)
    else:
        steps = _on_its_own(rider, device, start, min(until, float(table.finish_seconds[client])))
    is_fresh = np.arange(len(steps.begins)) < rider.num_fresh
    first_up = _either(is_fresh, rider.first_up, rider.later_up)
    turn_up = _either(is_fresh, rider.fresh_turn_up, rider.later_turn_up)
    forward = np.where(is_fresh, rider.forward_seconds, 0.0)
    computed = (
        np.clip(until - steps.begins, 0, forward).sum()
        + np.clip(until - steps.turns, 0, rider.turn_seconds).sum()
        + np.clip(until - steps.returns, 0, rider.backward_seconds).sum()
    )
    up_bytes = _flowed(first_up, device.up_bps, until - steps.begins - forward, device)
    up_bytes += _flowed(turn_up, device.up_bps, until - steps.turns - rider.turn_seconds, device)
    down_bytes = _flowed(rider.turn_down, device.down_bps, until - steps.tops, device)
    down_bytes += _flowed(rider.last_down, device.down_bps, until - steps.swept, device)
    messages = (
        (first_up.num_messages * (steps.boards <= until)).sum()
        + (rider.turn_down.num_messages * (steps.turns <= until)).sum()
        + (turn_up.num_messages * (steps.turned <= until)).sum()
        + (rider.last_down.num_messages * (steps.returns <= until)).sum()
    )
    return float(computed), steps.waited_seconds, up_bytes, down_bytes, float(messages)


def _in_turn(
    rider: Riders, device: Device, start: float, served: tuple[Floats, Floats], until: float
) -> _Steps:
    """Args: served: tops and ends of the sweeps that served its steps, as far as they came."""
    tops, ends = served
    count = min(len(ends) + 1, int(rider.num_steps[0]))
    at_top, swept = (np.append(times, [np.inf, np.inf])[:count] for times in (tops, ends))
    returns = swept + rider.last_down.down_seconds(device)
    begins = np.append(start, returns + rider.backward_seconds)[:count]
    is_fresh = np.arange(count) < rider.num_fresh
    first_up = _either(is_fresh, rider.first_up, rider.later_up)
    boards = begins + np.where(is_fresh, rider.forward_seconds, 0.0) + first_up.up_seconds(device)
    turns = at_top + rider.turn_down.down_seconds(device)
    turn_up = _either(is_fresh, rider.fresh_turn_up, rider.later_turn_up)
    turned = turns + rider.turn_seconds + turn_up.up_seconds(device)
    if rider.turns[0]:
        waited = np.maximum(np.minimum(at_top, until) - boards, 0)
        waited += np.maximum(np.minimum(swept, until) - np.minimum(turned, until), 0)
    else:
        waited = np.maximum(np.minimum(swept, until) - boards, 0)
    return _Steps(
        begins=begins,
        boards=boards,
        tops=at_top,
        turns=turns,
        turned=turned,
        swept=swept,
        returns=returns,
        waited_seconds=float(waited.sum()),
    )


def _on_its_own(rider: Riders, device: Device, start: float, until: float) -> _Steps:
    count = int(rider.num_fresh[0])
    up = rider.first_up.up_seconds(device)
    begins = start + np.arange(count) * (rider.step_seconds + up)
    boards = begins + rider.forward_seconds + up
    own_end = start + count * float((rider.step_seconds + up)[0])
    never = np.full(count, np.inf)  # nothing comes down
    return _Steps(
        begins=begins,
        boards=boards,
        tops=never,
        turns=never,
        turned=never,
        swept=never,
        returns=boards,
        waited_seconds=max(until - own_end, 0.0),
    )


def _either(is_fresh: NDArray[np.bool_], fresh: Leg, later: Leg) -> Leg:
    """One client's leg of each step, [steps]."""
    return Leg(
        num_messages=np.where(is_fresh, fresh.num_messages, later.num_messages),
        num_bytes=np.where(is_fresh, fresh.num_bytes, later.num_bytes),
    )


def _flowed(leg: Leg, bps: Floats, seconds: Floats, device: Device) -> float:
    """Bytes of a leg through a link so many seconds after each step's was begun, at most all of them."""
    flowing = np.maximum(seconds - leg.trip_seconds(device), 0)
    return float(np.minimum(flowing * bps / 8, leg.num_bytes).sum())
