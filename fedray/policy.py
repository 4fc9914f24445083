"""What a policy sees and answers: chooses clients and offers, with values only.

A policy never sees a tensor, an actor or the engine; it sees declared profiles, prices in virtual
time and records of what happened. The smallest one is a function::

    def assign(cohort, offers):
        return offers.best(offers.sum_of_ranks)   # one menu index per client, -1 leaves it out
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedray.assignment import Assignment
from fedray.cost import Device, Floats, Ints
from fedray.errors import ConfigError, PolicyError
from fedray.observable import Observable
from fedray.row_lengths import RowLengths
from fedray.staleness import CONSTANT, Staleness

Bools = NDArray[np.bool_]
State = Mapping[str, Any]  # a tree of arrays, numbers and strings; checkpointed as it is
LEAVE_OUT = -1
Choice = Ints | Sequence[int] | Sequence[Assignment | None]
Selected = Ints | Sequence[int] | tuple[Ints | Sequence[int], State]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """The clients of one round; arrays are [clients], in the order a choice must have.

    Attributes:
        round: from 1.
        seed: of this round's choices; derive generators from it, never draw globally.
        client_ids: rows of the fleet.
        device_class: as declared; ``device`` memory, rates, links and power.
        num_rows: rows of training data.
        tokens: what the client's longest row is padded to; memory is priced at that.
        num_tokens: real tokens of all its rows; None where nobody counted, and then nothing has a cut.
        attention: the kernel the client declares; with ``tokens`` it tells work shapes apart.
        row_lengths: time is priced at what they make a batch's own longest row; as ``tokens`` where None.
        charge_joules: in the client's battery now, infinity on mains; None where all are.
        spare_joules: that work may take: what is above the reserve, infinity while it is charging.
    """

    round: int
    seed: int
    client_ids: Ints
    device_class: NDArray[np.str_]
    device: Device
    num_rows: Ints
    tokens: Ints
    attention: NDArray[np.str_]
    num_tokens: Ints | None = None
    row_lengths: RowLengths | None = None
    charge_joules: Floats | None = None
    spare_joules: Floats | None = None

    def __len__(self) -> int:
        """How many clients."""
        return len(self.client_ids)

    def take(self, index: Ints) -> "Cohort":
        """The same round with the clients at ``index`` alone."""
        arrays: dict[str, Any] = {
            name: None if (column := getattr(self, name)) is None else column[index]
            for name in self.__slots__
            if name not in ("round", "seed", "device")
        }
        return replace(self, device=self.device.take(index), **arrays)


def _no_cut() -> NDArray[Any]:
    return np.zeros((1, 1), np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offers:
    """Every assignment of the menu priced for every client; arrays are [menu, clients] unless said.

    ``fits`` is the only gate: an entry that is False may not be chosen, and its prices still stand
    so that a policy can see how far away it was.

    Attributes:
        fits: memory, with the margin, and storage suffice, the battery with what it may spare, and under a
            cut the server's memory.
        virtual_seconds: with a server that nobody else rides, and with nobody else on its link.
        compute_seconds: the client's own.
        peak_bytes: predicted, without the margin.
        held_bytes: frozen parts that must lie in the client's storage.
        provision_bytes: those of them that must still be sent.
        up_bytes: the update's; ``down_bytes`` what the client starts from.
        boundary_up_bytes: hidden states and the like over the cut in all steps; ``boundary_down_bytes`` back.
        server_seconds: the server's for the client's steps, if nobody else rides.
        server_bytes: of the server's memory while the client is in the round, of ``server_room_bytes`` that
            its blocks leave for all clients, and, where rounds overlap, those who are on their way.
        sum_of_ranks: [menu].
        trained_params: [menu].
    """

    menu: tuple[Assignment, ...]
    fits: Bools
    peak_bytes: Ints
    num_steps: Ints
    virtual_seconds: Floats
    compute_seconds: Floats
    joules: Floats
    up_bytes: Ints
    down_bytes: Ints
    provision_bytes: Ints
    held_bytes: Ints
    sum_of_ranks: Ints
    trained_params: Ints
    boundary_up_bytes: Ints = field(default_factory=_no_cut)
    boundary_down_bytes: Ints = field(default_factory=_no_cut)
    server_seconds: Floats = field(default_factory=_no_cut)
    server_bytes: Ints = field(default_factory=_no_cut)
    server_room_bytes: int = 0

    def __post_init__(self) -> None:
        for name in ("boundary_up_bytes", "boundary_down_bytes", "server_seconds", "server_bytes"):
            spread = np.broadcast_to(getattr(self, name), self.fits.shape)
            object.__setattr__(self, name, spread)

    def seconds_of(self, choice: Ints) -> Floats:
        """Virtual seconds of each client's entry, [clients]; infinity where it is -1."""
        seconds = self.virtual_seconds[np.maximum(choice, 0), np.arange(len(choice))]
        found: Floats = np.where(choice == LEAVE_OUT, np.inf, seconds)
        return found

    @property
    def cut(self) -> Ints:
        """Leading blocks that the client keeps, [menu]: all of them in an entry without a cut."""
        return np.array([entry.cut for entry in self.menu], np.int64)

    @property
    def num_own_blocks(self) -> Ints:
        """Blocks that the client runs, [menu]: those below the cut and its tail, or all."""
        return np.array([entry.cut + entry.tail for entry in self.menu], np.int64)

    @property
    def has_cut(self) -> Bools:
        """Which entries have a cut, [menu]."""
        return np.array([entry.split for entry in self.menu], np.bool_)

    def need_cuts(self, policy: str) -> None:
        """Raises PolicyError, in the policy's name, if no entry of the menu has a cut."""
        if not self.has_cut.any():
            raise PolicyError(
                f"{policy} chooses cuts, and none of the menu's {len(self.menu)} assignments has one; give "
                "menu.cuts."
            )

    def each(self, condition: Sequence[bool]) -> Bools:
        """A condition on entries, [menu], as `best` takes it: for every client alike."""
        return np.array(condition, np.bool_)[:, None]

    def in_order(self, *keys: Ints | Floats | Sequence[float]) -> Ints:
        """A key for `best`, [menu]: larger where the first of these, [menu] each, that differs is larger."""
        return np.unique(np.stack(keys, axis=1), axis=0, return_inverse=True)[1].reshape(-1)

    def best(self, key: Ints | Floats, among: Bools | None = None) -> Ints:
        """Each client's fitting entry with the largest key, the fastest of equals; -1 where none fits.

        Args:
            key: [menu] or [menu, clients].
            among: a further condition, [menu, clients] or what broadcasts to it.

        Raises:
            PolicyError: if a key is not a number.
        """
        allowed = self.fits if among is None else self.fits & among
        keys = np.broadcast_to(np.asarray(key, float).reshape(len(self.menu), -1), self.fits.shape)
        if np.isnan(keys).any():
            raise PolicyError("Offers.best was given a key that is NaN for some entry; give numbers.")
        top = np.where(allowed, keys, -np.inf).max(axis=0, initial=-np.inf)
        equals = allowed & (keys == top)
        fastest = np.where(equals, self.virtual_seconds, np.inf).min(axis=0, initial=np.inf)
        chosen = (equals & (self.virtual_seconds <= fastest)).argmax(axis=0)
        return np.where(allowed.any(axis=0), chosen, LEAVE_OUT).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What each client of a cohort does: an assignment, or None where it is left out."""

    client_ids: tuple[int, ...]
    assignments: tuple[Assignment | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """When a round closes, and what becomes of who is late.

    With ``late="join"`` clients go on when a round closes, and their updates count in a later one, against
    the state as it is then. Whoever arrives is replaced at once by another client, which starts from the
    newest state. FedBuff (2106.06639) is a goal K with a concurrency and the polynomial staleness; FedAsync
    (1903.03934) is goal 1 with ``mixing`` below 1 and a rule that averages states; with a deadline rounds
    close at fixed times (semi-asynchronous).

    Attributes:
        goal: updates a round waits for; None is all that were asked.
        concurrency: clients at work at once; None is all that the round selected.
        deadline_seconds: virtual seconds after which the round closes; None waits for everybody. Where the
            late join, a round without any update by then waits for the first.
        late: what happens to an update after the round closed; its cost is always charged. With ``partial``
            nobody who can do one local step in time is late: a client knows the deadline and its own rates,
            and does as many of its steps as leave time to send.
        staleness: what an update counts that is this many versions behind.
        mixing: of every update, beside its staleness: FedAsync's alpha.
        normalizer: what a round's sum is divided by: the updates' weights (``goal``, as in FedBuff's paper),
            or these times what each counts (``sum``, as in FedScale).
        max_staleness: an update further behind is thrown away, and is ``late``.
    """

    goal: int | None = None
    concurrency: int | None = None
    deadline_seconds: float | None = None
    late: Literal["drop", "join", "partial"] = "drop"
    staleness: Staleness = CONSTANT
    mixing: float = 1.0
    normalizer: Literal["goal", "sum"] = "goal"
    max_staleness: int | None = None

    @property
    def joins(self) -> bool:
        """Whether late updates count in later rounds, so that rounds overlap."""
        return self.late == "join"

    def __post_init__(self) -> None:
        for name, count in (("goal", self.goal), ("concurrency", self.concurrency)):
            if count is not None and count < 1:
                raise ConfigError(f"pace.{name} must be at least 1 or absent, found {count}.")
        if self.deadline_seconds is not None and not self.deadline_seconds > 0:
            raise ConfigError(f"pace.deadline_seconds is above 0 or absent, found {self.deadline_seconds}.")
        if not 0 < self.mixing <= 1:
            raise ConfigError(f"pace.mixing is above 0 and at most 1, found {self.mixing}.")
        if self.late == "partial" and self.deadline_seconds is None:
            raise ConfigError("pace.late: partial cuts work short at pace.deadline_seconds; give that, too.")
        if self.joins and self.goal is None and self.deadline_seconds is None:
            raise ConfigError(
                "pace.late: join never closes a round without pace.goal or pace.deadline_seconds."
            )


def _everybody(client_ids: Ints) -> Bools:
    return np.ones(len(client_ids), np.bool_)


def _always(client_ids: Ints, from_seconds: float, until_seconds: float) -> Bools:
    return np.ones(len(client_ids), np.bool_)


def _no_profiles(client_ids: Ints) -> "Cohort":
    raise PolicyError("This view was made without profiles; give it cohort_of.")


def _no_prices(client_ids: Ints) -> Offers:
    raise PolicyError("This view was made without prices; give it offers_of.")


def _unknown() -> Ints:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a policy may know before it selects.

    Attributes:
        round: from 1.
        seed: of this round's selection.
        num_clients: of the fleet's clients that train.
        clients_per_round: what the configuration asks for.
        menu: the configuration's assignments.
        num_rows: of each client's training data, [num_clients].
        is_online: what `View.online` asks, [clients] to [clients]; it knows the fleet and the round.
        may_be_asked: [clients] to [clients]; `View.sample` gives nobody else. By a trace that is who is
            online, and where rounds overlap who is not at work already.
        foretold: what `View.stays_online` asks: clients, and two moments in seconds from now.
        cohort_of: what `View.cohort` asks; ``offers_of`` what `View.offers` asks.
        leakage: by cut what its hidden states give away, 0 to 1 (`fedray.leakage`); empty if not measured.
        may_ask_nobody: where each client is drawn for itself a round may have none.
        history: one mapping per finished client-round, newest last: columns of ``clients.parquet``, and
            as ``statistics`` the values of the policy's observables, [num_blocks] each by name: not a
            number where the client trains nothing of a block, and nothing from one whose update did
            not count.
    """

    round: int
    seed: int
    num_clients: int
    clients_per_round: int
    menu: tuple[Assignment, ...]
    num_rows: Ints = field(default_factory=_unknown)
    is_online: Callable[[Ints], Bools] = _everybody
    may_be_asked: Callable[[Ints], Bools] = _everybody
    foretold: Callable[[Ints, float, float], Bools] = _always
    cohort_of: Callable[[Ints], Cohort] = _no_profiles
    offers_of: Callable[[Ints], Offers] = _no_prices
    may_ask_nobody: bool = False
    leakage: Mapping[int, float] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = field(default=())

    def sample(self, count: int | None = None, *, online: bool = False) -> Ints:
        """``count`` clients (default: ``clients_per_round``) without replacement, in ascending order.

        Args:
            count: fewer are given where there are fewer.
            online: only clients that are online this round.
        """
        size = min(self.clients_per_round if count is None else count, self.num_clients)
        asked = size
        while True:
            chosen = np.random.default_rng(self.seed).choice(self.num_clients, asked, replace=False)
            chosen = chosen[self.may_be_asked(chosen)]
            found = chosen[self.online(chosen)] if online else chosen
            if len(found) >= size or asked == self.num_clients:
                return np.sort(found[:size]).astype(np.int64)
            # Of a million clients few are looked at, unless few are online.
            asked = min(4 * max(asked, 1), self.num_clients)

    def online(self, client_ids: Ints | Sequence[int]) -> Bools:
        """Which of these clients are online, [clients], in the order given.

        By a trace or a daily rhythm (``availability``) it is who is online as the round starts; how long, a
        server does not know. Otherwise it is who stays online for the whole round: a client is with the
        probability that its profile declares as ``availability``, drawn anew for every round from the run's
        seed, the round and the client alone: whoever else is asked about changes nothing. With ``dropouts:
        true`` those who are not online are those who would drop out.

        Raises:
            PolicyError: if an id is not one of the fleet's.
        """
        return self.is_online(self._known(client_ids, "online"))

    def stays_online(self, client_ids: Ints | Sequence[int], after_seconds: float, seconds: float) -> Bools:
        """Which of these clients foretell to be online for so long from then on, [clients].

        Clients know their habits: by a trace or a daily rhythm (``availability``) they foretell them exactly.
        Otherwise they know of no reason to leave, and all say yes; a drop-out comes unforeseen.

        Args:
            client_ids: who is asked.
            after_seconds: virtual seconds from now, at which it begins.
            seconds: how long it lasts.

        Raises:
            PolicyError: if an id is not one of the fleet's.
        """
        ids = self._known(client_ids, "stays_online")
        return self.foretold(ids, after_seconds, after_seconds + seconds)

    def cohort(self, client_ids: Ints | Sequence[int]) -> Cohort:
        """These clients as they declare themselves. Raises PolicyError for an id that is not there."""
        return self.cohort_of(self._known(client_ids, "cohort"))

    def offers(self, client_ids: Ints | Sequence[int]) -> Offers:
        """The round's menu priced for these clients, as ``assign`` would be given it.

        Arrays are [menu, clients], so ask about some of a large fleet at a time. Raises PolicyError for an
        id that is not there.
        """
        return self.offers_of(self._known(client_ids, "offers"))

    def _known(self, client_ids: Ints | Sequence[int], asked: str) -> Ints:
        ids = np.asarray(client_ids, np.int64)
        beyond = ids[(ids < 0) | (ids >= self.num_clients)]
        if len(beyond):
            raise PolicyError(
                f"{asked} was asked about client {beyond[0]}; ids are 0 to {self.num_clients - 1}."
            )
        return ids


@runtime_checkable
class Policy(Protocol):
    """What the engine asks; a policy's file may leave out all but ``assign`` (see `load_policy`)."""

    aggregation: str | None
    pace: Pace | None
    aggregation_interval: int | None
    local_rules: Mapping[str, float]
    observables: tuple[Observable, ...]

    def menu(self, view: View) -> Sequence[Assignment]:
        """The assignments to price this round."""

    def select(self, view: View, state: State) -> Selected:
        """Ids of this round's clients, without repeats; or these and the state from now on."""

    def assign(self, cohort: Cohort, offers: Offers, state: State) -> tuple[Choice, State]:
        """One menu index per client of the cohort, -1 to leave it out; or one assignment each, or None."""

    def observe(self, records: Sequence[Mapping[str, Any]], state: State) -> State:
        """Learn from the round's finished client records, which are as in `View.history`."""
