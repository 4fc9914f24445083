"""What a configuration's protection comes to under its policy, and what it refuses."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from fedray.assignment import Assignment
from fedray.config.sections import Config
from fedray.cost import Ints
from fedray.errors import ConfigError
from fedray.mechanism import CutNoise, Mechanism, Where, most_updates
from fedray.policy import Pace, View
from fedray.policy_loading import LoadedPolicy
from fedray.record import ClientRecord, RoundRecord
from fedray.selection import SelectedBy


def mechanism_of(config: Config, policy: LoadedPolicy | SelectedBy, pace: Pace) -> Mechanism | None:
    """The run's; None where none is asked for.

    Raises:
        ConfigError: for a policy or a pace under which the promise would not hold.
    """
    section = config.privacy
    if section.where is None:
        return None
    assert section.clip_norm is not None, "checked with the configuration"
    _refuse_observables(section.where, policy)
    if section.where == "central":
        _refuse_pace(pace)
        _refuse_choices(config, policy)
    sampled = config.selection is not None and config.selection.name == "poisson"
    return Mechanism(
        where=section.where,
        clip_norm=section.clip_norm,
        noise_multiplier=section.noise_multiplier,
        delta=section.delta,
        sampling="poisson" if sampled else "fixed_size",
    )


def cut_noise_of(config: Config) -> CutNoise | None:
    """What clients do to hidden states at their cuts; None where they leave them as they are."""
    section = config.privacy
    if section.cut_clip_norm is None:
        return None
    return CutNoise(clip_norm=section.cut_clip_norm, noise_multiplier=section.cut_noise_multiplier)


def times_sent(assignment: Assignment, num_rows: int, num_steps: int) -> int:
    """How often the hidden states of one of a client's rows go up in a round, at most; 0 without a cut.

    Every epoch has each row once, a black-box client's at each look; below a frozen bottom the server keeps
    what it was sent in the first.
    """
    if not assignment.split:
        return 0
    epochs = -(-num_steps // -(-num_rows // assignment.batch_size))
    return 1 if assignment.frozen_bottom else epochs * assignment.rides_per_step


def with_cut_epsilon(
    config: Config, tokens: Ints, before: Iterable[ClientRecord], clients: Sequence[ClientRecord]
) -> list[ClientRecord]:
    """The records of a round's clients with what noise at cuts has used up of a row's privacy.

    Every round in which a client had a cut counts as if all its steps had been heard, whatever became of it.

    Args:
        config: of the run.
        tokens: what each client's longest row is padded to, [clients].
        before: of all client-rounds before.
        clients: of this round.
    """
    noise = cut_noise_of(config)
    if noise is None or not noise.noise_multiplier:
        return list(clients)
    read = cache(Assignment.from_json)

    def times(one: ClientRecord) -> int:
        return times_sent(read(one.assignment), one.num_rows, one.num_steps)

    total: Counter[int] = Counter()
    told = []
    for one in before:
        total[one.client_id] += times(one)
    for one in clients:
        total[one.client_id] += times(one)
        most = noise.epsilon(int(tokens[one.client_id]), total[one.client_id], config.privacy.delta)
        told.append(replace(one, cut_epsilon=most))
    return told


def highest_cut_epsilon(before: Sequence[RoundRecord], clients: Iterable[ClientRecord]) -> float | None:
    """Of all clients that have had a cut so far, this round's among them."""
    found = [record.cut_epsilon for record in before[-1:]] + [record.cut_epsilon for record in clients]
    return max((epsilon for epsilon in found if epsilon is not None), default=None)


def sampling_rate(mechanism: Mechanism | None, view: View) -> float | None:
    """A client's chance to be asked in a round; None where nothing is counted on it."""
    if mechanism is None or mechanism.where == "local" or not mechanism.noise_multiplier:
        return None
    able = view.num_clients
    if mechanism.sampling == "fixed_size":
        able = int(view.may_be_asked(np.arange(view.num_clients)).sum())
    return min(1.0, view.clients_per_round / max(able, 1))


def with_epsilon(
    mechanism: Mechanism | None,
    record: RoundRecord,
    before: Sequence[RoundRecord],
    clients: Iterable[ClientRecord],
) -> RoundRecord:
    """The record of a round with what has been used up after it.

    Args:
        mechanism: of the run.
        record: with its sampling rate.
        before: of the rounds before.
        clients: of all client-rounds, this round's too.
    """
    if mechanism is None:
        return record
    rates = [one.sampling_rate for one in (*before, record) if one.sampling_rate is not None]
    # Central noise is accounted by rates alone, and a long run has many client-rounds to count.
    sent = clients if mechanism.where == "local" else ()
    most = most_updates((one.client_id, one.outcome) for one in sent)
    return replace(record, epsilon=mechanism.epsilon(rates, most))


def refuse_beside_masks(config: Config, policy: LoadedPolicy | SelectedBy, pace: Pace) -> bool:
    """Whether updates are masked. Raises ConfigError for what would show the server more than their sum."""
    if config.secure_aggregation.masks == "none":
        return False
    if pace.joins:
        raise ConfigError(
            "pace.late: join sums updates of several rounds, and masks cancel among the clients of one; drop "
            "it, or secure_aggregation."
        )
    if policy.observables:
        raise ConfigError(
            f"secure_aggregation masks updates, and {policy.name!r} asks clients for "
            f"{', '.join(policy.observables)}, which they send as they are; choose another policy, or "
            "drop it."
        )
    return True


def _refuse_observables(where: Where, policy: LoadedPolicy | SelectedBy) -> None:
    if policy.observables:
        raise ConfigError(
            f"privacy.where: {where} protects updates, and {policy.name!r} asks clients for "
            f"{', '.join(policy.observables)}, which no noise protects; choose another policy, or drop "
            "privacy."
        )


def _refuse_pace(pace: Pace) -> None:
    if pace.goal is not None or pace.joins:
        why = "late: join" if pace.joins else f"goal: {pace.goal}"
        raise ConfigError(
            f"pace.{why} makes it a matter of the other clients whether an update counts, so how far one "
            "client moves the sum is not known; drop it, or set privacy.where: local."
        )


def _refuse_choices(config: Config, policy: LoadedPolicy | SelectedBy) -> None:
    selection, by_itself = config.selection, isinstance(policy, LoadedPolicy) and policy.selects
    by_lot = selection is None or (selection.name in ("uniform", "poisson") and not selection.options)
    if by_itself or not by_lot:
        raise ConfigError(
            f"privacy.where: central counts on clients that are drawn by lot among all, and {policy.name!r} "
            "chooses them; choose selection: uniform or poisson without options, or set privacy.where: local."
        )
    if policy.learns:
        raise ConfigError(
            f"privacy.where: central protects the model, and {policy.name!r} learns from records of clients, "
            "which no noise protects; choose another policy, or set privacy.where: local."
        )
