"""Membership by likelihood ratio: a row's loss against that of models that never saw it.

The offline attack of 2112.03570-style: a Gaussian of log-odds is fitted to models without the row alone.

A hard row has a large loss in any model, so the loss alone says little of one row. Shadow models, trained by
the attacker on halves of rows of its own drawing, tell how large it is where the row was not trained on.

Letters of shapes: S shadows, N rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedray.adapter import Adapter, applied
from fedray.attacks.membership import Membership, losses_of, strength
from fedray.cost import Floats
from fedray.errors import ConfigError
from fedray.seeds import generator
from fedray.training.data import Rows
from fedray.training.job import Job
from fedray.training.train import Workshop, train_pack

# Where a probability is one but for rounding its logarithmic odds are no number.
_LEAST_LOSS = 1e-7


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadow:
    """A model that the attacker trained itself.

    Attributes:
        adapter: as trained.
        rows: of the pool that it saw.
    """

    adapter: Adapter
    rows: Rows


def trained_shadows(workshop: Workshop, like: Job, rows: Rows, count: int, seed: int) -> list[Shadow]:
    """Shadow models on random halves of these rows and on the other halves, all in one pack.

    So each row is left out by half of them.

    Args:
        workshop: with the model and the rows.
        like: what each is told to do, but for whose rows it does it on; ``sent`` is what it starts from.
        rows: of the pool, those that are asked about among them.
        count: of shadows: even, and at least four.
        seed: of the halves.

    Raises:
        ConfigError: for another count, or fewer than two rows.
    """
    halves = halves_of(rows, count, seed)
    adapters = _trained(workshop, shadow_jobs(like, halves), halves)
    return [
        Shadow(adapter=adapter, rows=half)
        for adapter, half in zip(adapters, halves, strict=True)
        if adapter is not None
    ]


def halves_of(rows: Rows, count: int, seed: int) -> tuple[Rows, ...]:
    """Whose shadow sees which rows: a random half, then the other one; as of `trained_shadows`."""
    if count < 4 or count % 2 or len(rows) < 2:
        raise ConfigError(
            f"Shadows are an even number from four on, on halves of two rows or more: found {count} on "
            f"{len(rows)} rows."
        )
    halves: list[Rows] = []
    for number in range(count // 2):
        order = generator(seed, "shadows", number).permutation(rows)
        halves += [np.sort(order[: len(rows) // 2]), np.sort(order[len(rows) // 2 :])]
    return tuple(halves)


def shadow_jobs(like: Job, halves: Sequence[Rows]) -> list[Job]:
    """What each shadow is told to do, in their order; its number is the client that its draws are of."""
    return [
        replace(like, client_id=at, num_rows=len(half), num_steps=like.assignment.num_steps(len(half)))
        for at, half in enumerate(halves)
    ]


def losses_of_shadows(workshop: Workshop, jobs: Sequence[Job], halves: Sequence[Rows], rows: Rows) -> Floats:
    """Of some shadows, trained in one pack here, the loss of every row, [S, N].

    Args:
        workshop: with the model and the rows.
        jobs: of `shadow_jobs`, some of them.
        halves: of all shadows.
        rows: of the pool.

    Returns:
        Losses; no numbers at all of a shadow whose training came to none.
    """
    adapters = _trained(workshop, jobs, halves)
    nothing = np.full(len(rows), np.nan)
    return np.stack([nothing if own is None else losses_of(workshop, own, rows) for own in adapters])


def _trained(workshop: Workshop, jobs: Sequence[Job], halves: Sequence[Rows]) -> list[Adapter | None]:
    # A shadow is alone: there is no server whose variate it has, and no round whose start it stays near.
    alone = replace(workshop.optimizer, control_variates=False, proximal_mu=0.0)
    updates = train_pack(replace(workshop, partitions=tuple(halves), optimizer=alone), jobs)
    return [
        None if update.delta is None else applied(job.sent, update.delta)
        for job, update in zip(jobs, updates, strict=True)
    ]


def by_ratio(
    workshop: Workshop, adapter: Adapter, shadows: Sequence[Shadow], members: Rows, others: Rows
) -> Membership:
    """The attack on a global adapter; arguments and errors as of `membership.by_loss`, and of `ratios`."""
    rows = np.concatenate([members, others])
    seen = np.stack([losses_of(workshop, shadow.adapter, rows) for shadow in shadows])
    out = np.stack([~np.isin(rows, shadow.rows) for shadow in shadows])
    scores = ratios(losses_of(workshop, adapter, rows), seen, out)
    return strength(scores[: len(members)], scores[len(members) :])


def told_by(losses: Floats, shadows: Floats, out: NDArray[np.bool_], num_members: int) -> Membership | None:
    """The attack on losses alone; shadows with a loss that is no number are left out.

    Args:
        losses: of the model that is asked about, [N]: of the members first.
        shadows: of the shadow models, [S, N].
        out: whether a shadow did not see a row, [S, N].
        num_members: rows that trained.

    Returns:
        None where so many shadows are left out that some row has fewer than two.
    """
    fine = np.isfinite(shadows).all(1)
    if out[fine].sum(0).min() < 2:
        return None
    scores = ratios(losses, shadows[fine], out[fine])
    return strength(scores[:num_members], scores[num_members:])


def ratios(losses: Floats, shadows: Floats, out: NDArray[np.bool_]) -> Floats:
    """Of each row how many deviations its log-odds lie above those of models that did not see it, [N].

    Odds are p / (1 - p), where p is exp(-loss). One deviation serves all rows, as 2112.03570 has it for few
    shadows.

    Args:
        losses: of the model that is asked about, [N].
        shadows: of the shadow models, [S, N].
        out: whether a shadow did not see a row, [S, N].

    Raises:
        ConfigError: for a row that fewer than two shadows left out.
    """
    counts = out.sum(0)
    if counts.min() < 2:
        raise ConfigError(
            f"{int((counts < 2).sum())} of {len(counts)} rows were left out by fewer than two shadows; train "
            "more."
        )
    odds = _odds(shadows)
    means = np.where(out, odds, 0).sum(0) / counts
    squares = np.where(out, np.square(odds - means), 0).sum()
    deviation = max(np.sqrt(squares / (counts - 1).sum()), 1e-12)
    scores: Floats = (_odds(losses) - means) / deviation
    return scores


def _odds(losses: Floats) -> Floats:
    positive = np.maximum(losses, _LEAST_LOSS)
    odds: Floats = -positive - np.log(-np.expm1(-positive))
    return odds
