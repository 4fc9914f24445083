"""A round's sweeps as a timetable: clients that are asked together, and what each comes to."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedray.cost import Device, Floats, Ints
from fedray.riders import Riders
from fedray.sweeping import Passenger, StepSeconds, Sweeps, SweepTime, swept_seconds
from fedray.virtual_server import VirtualServer


@dataclass(frozen=True, slots=True, kw_only=True)
class Timetable:
    """A round's sweeps.

    Attributes:
        sweeps: in order.
        step_ends: of each client the ends of the sweeps that served its steps, one array a client;
            ``step_tops`` when these were at the top. For a black-box client it ends where its loss leaves.
        finish_seconds: when each client's last step is over, [clients]: its start for one without steps,
            infinity for one that left before.
    """

    sweeps: tuple[SweepTime, ...]
    step_ends: tuple[Floats, ...]
    step_tops: tuple[Floats, ...]
    finish_seconds: Floats

    def busy_seconds(self, until: float) -> float:
        """How long the server swept until then."""
        return swept_seconds(self.sweeps, -np.inf, until)


@dataclass(frozen=True, slots=True, kw_only=True)
class Travellers:
    """Who comes to a server in a round; arrays are [clients].

    Attributes:
        client_ids: of equal boardings in a queue the smaller id goes first.
        start_seconds: when each begins its first step.
        leave_seconds: when each leaves the round, done or not; infinity for who stays.
    """

    client_ids: Ints
    riders: Riders
    device: Device
    start_seconds: Floats
    leave_seconds: Floats


def timetable(server: VirtualServer, travellers: Travellers) -> Timetable:
    """Runs a round's sweeps from second 0 to the last step of the last client."""
    run = Sweeps(server=server)
    who = passengers_of(travellers)
    for place, passenger in enumerate(who):
        run.come(place, passenger)
    run.through()
    return table_of(who, tuple(run.over))


def table_of(
    who: Sequence[Passenger], sweeps: tuple[SweepTime, ...] = (), since_seconds: float = 0.0
) -> Timetable:
    """What these have come to so far, in seconds since a moment; ``sweeps`` are in these already."""
    return Timetable(
        sweeps=sweeps,
        step_ends=tuple(np.array(one.ends, np.float64) - since_seconds for one in who),
        step_tops=tuple(np.array(one.tops, np.float64) - since_seconds for one in who),
        finish_seconds=np.array([one.finish_seconds for one in who], np.float64) - since_seconds,
    )


def passengers_of(who: Travellers, since_seconds: float = 0.0) -> list[Passenger]:
    """Each of them before its first step, in seconds of a loop that is so far on as they are asked."""
    start, leave = who.start_seconds + since_seconds, who.leave_seconds + since_seconds
    rows = zip(_steps(who), who.client_ids.tolist(), start.tolist(), leave.tolist(), strict=True)
    return [
        Passenger(client_id=client, step=step, start_seconds=begins, leave_seconds=leaves)
        for step, client, begins, leaves in rows
    ]


def _steps(who: Travellers) -> list[StepSeconds]:
    riders, device = who.riders, who.device
    first_up = riders.first_up.up_seconds(device)
    to_the_tail = riders.turn_down.down_seconds(device) + riders.turn_seconds
    columns = {
        "num_steps": riders.num_steps,
        "num_fresh": riders.num_fresh,
        "fresh_before": riders.forward_seconds + first_up,
        "later_before": riders.later_up.up_seconds(device),
        "fresh_turn": to_the_tail + riders.fresh_turn_up.up_seconds(device),
        "later_turn": to_the_tail + riders.later_turn_up.up_seconds(device),
        "after": riders.last_down.down_seconds(device) + riders.backward_seconds,
        "alone": riders.step_seconds + first_up,
        "waits": riders.waits,
        "turns": riders.turns,
        "flops": riders.server_flops,
        "first_block": riders.first_block,
        "blind": riders.blind > 0,
    }
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [StepSeconds(**dict(zip(columns, row, strict=True))) for row in rows]
