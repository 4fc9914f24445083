"""Counts at any depth from few short steps: exact where blocks of a run are alike."""

from collections import Counter
from itertools import groupby

from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.model.counter import TERMS
from fedray.model.trace import SHORT, StepCounts, counts_at_depth


def step_of(ranks, asked):
    """A made-up step whose middle blocks are alike: kept activations grow block by block."""

    def step(positions):
        asked.append(positions)
        chosen = [ranks[p] for p in positions]
        phases, alive = {}, 1000 * len(chosen)
        for index, rank in enumerate(chosen):
            alive += 7 + 3 * rank
            phases["forward", index] = dict.fromkeys(TERMS, 0) | {"activations": alive}
        for index in reversed(range(len(chosen))):
            phases["backward", index] = dict.fromkeys(TERMS, 0) | {
                "activations": alive, "gradients": sum(chosen[index:])
            }  # fmt: skip
            alive -= 7 + 3 * chosen[index]
        phases["optimizer", 0] = dict.fromkeys(TERMS, 0) | {"optimizer": 2 * sum(chosen)}
        ops = Counter((rank, 1) for rank in chosen)
        return StepCounts(
            phases=phases, ops=ops, forward_flops=sum(chosen) + 5, backward_flops=2 * sum(chosen)
        )

    return step


@given(st.lists(st.tuples(st.sampled_from([0, 2, 8]), st.integers(1, 9)), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_counts_of_long_runs_are_those_of_the_whole_step(runs):
    ranks = [rank for rank, length in runs for _ in range(length)]
    asked = []
    step = step_of(ranks, asked)
    short, whole = counts_at_depth(ranks, step), step(tuple(range(len(ranks))))
    assert sum(short.peak().values()) == sum(whole.peak().values())
    assert (short.forward_flops, short.backward_flops) == (whole.forward_flops, whole.backward_flops)
    assert +short.ops == +whole.ops
    lengths = [len(list(run)) for _, run in groupby(ranks)]
    assert len(asked) == 2 + sum(length > SHORT for length in lengths)
    assert max(map(len, asked[:-1])) <= SHORT * len(lengths) + 1


def test_few_blocks_are_traced_as_they_are():
    asked = []
    counts_at_depth([0, 0, 4], step_of([0, 0, 4], asked))
    assert asked == [(0, 1, 2)]
