"""A few rounds of a policy without training: selected, priced, decided, timed and recorded as in a run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedray.assignment import Assignment
from fedray.clock import draw_online
from fedray.cost import Ints
from fedray.errors import DoesNotFit, FedrayError
from fedray.policy import Cohort, Decision, Offers, State, View
from fedray.policy_loading import LoadedPolicy
from fedray.policy_state import freeze_state, thaw_state
from fedray.progress import history_of
from fedray.record import ClientRecord
from fedray.scheduler import Pricing, ask_menu, ask_selection, decide, price_menu
from fedray.seeds import derive_seed
from fedray.testing.asked_policy import AskedPolicy, Refused, Wrong
from fedray.testing.priced_model import SERVER, Client, cohort_of, pricing_of, with_memory
from fedray.testing.recorded import availability, recorded

ROUNDS = 3

Load = Callable[[], LoadedPolicy]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyCase:
    """A fleet and a menu to play a few rounds on.

    Attributes:
        clients: of the fleet.
        menu: the configuration's.
        clients_per_round: that a policy is asked to select.
        room_bytes: of the server beside its blocks.
        seed: of everything drawn.
    """

    clients: tuple[Client, ...]
    menu: tuple[Assignment, ...]
    clients_per_round: int
    room_bytes: int = 10**4
    seed: int = 0

    def __str__(self) -> str:
        """In words, for whoever has to find the mistake."""
        clients = "; ".join(f"client {k}: {client}" for k, client in enumerate(self.clients))
        menu = "; ".join(f"{row}: {entry}" for row, entry in enumerate(self.menu))
        return (
            f"{clients}. {self.clients_per_round} of them a round. Menu: {menu}. Server with "
            f"{self.room_bytes} B; seed {self.seed}"
        )


def play(load: Load, case: PolicyCase, *, resumed: bool = False) -> tuple[Decision, ...]:
    """The decision of every round.

    Args:
        load: gives a fresh copy of the policy.
        case: to play on.
        resumed: begin every round as after a crash: with a fresh copy, and the state from a checkpoint.

    Raises:
        Refused: the policy says that it does not do this.
        Wrong: it does what it may not.
    """
    try:
        return _played(load, case, resumed=resumed)
    except (Refused, Wrong):
        raise
    except DoesNotFit as error:
        raise Wrong("memory", str(error)) from error
    except FedrayError as error:
        raise Wrong("contract", str(error)) from error
    except Exception as error:
        raise Wrong(
            "contract", f"the scheduler fails on its answer: {type(error).__name__}: {error}"
        ) from error


def _played(load: Load, case: PolicyCase, *, resumed: bool) -> tuple[Decision, ...]:
    pricing = pricing_of(with_memory(SERVER, case.room_bytes))
    policy = AskedPolicy(load())
    state: State = {}
    records: list[ClientRecord] = []
    decisions = []
    for number in range(1, ROUNDS + 1):
        frozen = freeze_state(state)
        if resumed:
            policy, state = AskedPolicy(load()), thaw_state(*frozen)
        view = _view(case, number, records)
        menu = ask_menu(policy, view)
        asked_of = replace(view, offers_of=_priced(menu, view.cohort_of, pricing))
        chosen, state = ask_selection(policy, asked_of, state)
        cohort = view.cohort_of(np.sort(chosen))
        offers = price_menu(menu, cohort, pricing)
        schedule = decide(policy, cohort, offers, state, pricing)
        told = recorded(case.seed, cohort, schedule, pricing, policy)
        state = policy.observe(history_of(told), schedule.state)
        records += told
        decisions.append(schedule.decision)
    return tuple(decisions)


def _priced(
    menu: Sequence[Assignment], cohort_of: Callable[[Ints], Cohort], pricing: Pricing
) -> Callable[[Ints], Offers]:
    return lambda ids: price_menu(menu, cohort_of(ids), pricing)


def _view(case: PolicyCase, number: int, records: list[ClientRecord]) -> View:
    seed = derive_seed(case.seed, "assignments", number)
    return View(
        round=number,
        seed=derive_seed(case.seed, "selection", number),
        num_clients=len(case.clients),
        clients_per_round=case.clients_per_round,
        menu=case.menu,
        num_rows=np.array([client.num_rows for client in case.clients]),
        cohort_of=lambda ids: cohort_of(
            [case.clients[k] for k in ids.tolist()], ids, number=number, seed=seed
        ),
        is_online=lambda ids: draw_online(case.seed, number, ids, availability(ids)),
        leakage={entry.cut: 1 / (1 + entry.cut) for entry in case.menu if entry.split},
        history=history_of(records),
    )
