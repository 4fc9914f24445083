"""Counts of one step at full depth from steps over a few blocks.

Blocks are alike, so within a run of blocks of one kind every count grows by the same amount with each
block. A step over runs shortened to three blocks, and one more for every shortened run, give all counts
at any depth: bytes alive in each phase, FLOPs, and how often each operation runs. Runs of three or fewer
are traced as they are, so shallow models are never extrapolated.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby

from fedray.model.counter import Phase, Terms

# First, middle and last block of a run differ in what is alive around them; middles are alike.
SHORT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCounts:
    """One step: bytes alive at the worst moment of each phase by term, and how often each operation ran."""

    phases: dict[Phase, Terms]
    ops: Counter[tuple[int, int]]  # (FLOPs, bytes moved): times
    forward_flops: int
    backward_flops: int
    turn_flops: int = 0  # of a tail, forward and backward

    def peak(self) -> Terms:
        """The phase with most bytes alive."""
        return max(self.phases.values(), key=lambda terms: sum(terms.values()))


CountedStep = Callable[[tuple[int, ...]], StepCounts]


def counts_at_depth(kinds: Sequence[Hashable], step: CountedStep) -> StepCounts:
    """The counts of a step over blocks of these kinds.

    Args:
        kinds: of each executed block, in order: those of one kind cost the same.
        step: counts a step that executes only the blocks at the given positions of ``kinds``.
    """
    lengths = [len(list(run)) for _, run in groupby(kinds)]
    short = [min(length, SHORT) for length in lengths]
    base = _labelled(step, lengths, short)
    total = base
    for run, (length, kept) in enumerate(zip(lengths, short, strict=True)):
        if length > kept:
            longer = _labelled(step, lengths, [n + (i == run) for i, n in enumerate(short)])
            total = _extended(total, base, longer, length - kept)
    return total


def _labelled(step: CountedStep, lengths: list[int], kept: list[int]) -> StepCounts:
    """A step over ``kept`` blocks of each run, its block phases named by run and place in the run."""
    positions: list[int] = []
    labels: list[int] = []
    start = 0
    for run, (length, count) in enumerate(zip(lengths, kept, strict=True)):
        positions += [start + i for i in range(count)]
        labels += [run * SHORT + (0 if i == 0 else 2 if i == count - 1 else 1) for i in range(count)]
        start += length
    counts = step(tuple(positions))
    phases: dict[Phase, Terms] = {}
    for (name, index), terms in counts.phases.items():
        phase = (name, labels[index]) if name in ("forward", "backward") else (name, index)
        if phase not in phases or sum(terms.values()) > sum(phases[phase].values()):
            phases[phase] = terms
    return StepCounts(
        phases=phases,
        ops=counts.ops,
        forward_flops=counts.forward_flops,
        backward_flops=counts.backward_flops,
        turn_flops=counts.turn_flops,
    )


def _extended(total: StepCounts, base: StepCounts, longer: StepCounts, times: int) -> StepCounts:
    phases = {
        phase: {
            term: count + times * (longer.phases[phase][term] - base.phases[phase][term])
            for term, count in terms.items()
        }
        for phase, terms in total.phases.items()
    }
    ops = Counter(total.ops)
    for op in set(longer.ops) | set(base.ops):
        ops[op] += times * (longer.ops[op] - base.ops[op])
    return StepCounts(
        phases=phases,
        ops=ops,
        forward_flops=total.forward_flops + times * (longer.forward_flops - base.forward_flops),
        backward_flops=total.backward_flops + times * (longer.backward_flops - base.backward_flops),
        turn_flops=total.turn_flops + times * (longer.turn_flops - base.turn_flops),
    )
