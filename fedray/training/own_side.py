"""A client's own side of its cut between two averagings: what it was sent, and what became of it since.

SplitLoRA (2407.00952) and AdaptSFL (2403.13101) average what lies below the cuts every so many rounds. In
between it stays with the client, a part of what that keeps between rounds: nothing of it goes up or down.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedray.adapter import Adapter, Factors
from fedray.model.anatomy import Anatomy
from fedray.training.job import ClientState, Job
from fedray.training.shares import client_share, joined, learnt_above

_MARK = "own_side."
_BEGUN, _NOW, _SCALE = f"{_MARK}begun.", f"{_MARK}now.", f"{_MARK}scale."
_HEAD = "head."

Shapes = frozenset[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnSide:
    """What a client goes on with.

    Attributes:
        begun: its share of the adapter as it was last sent.
        now: the same as trained since, with the same sites and ranks.
    """

    begun: Adapter
    now: Adapter

    @staticmethod
    def of(state: ClientState) -> "OwnSide | None":
        """Read out of what a client keeps; None if there is none."""
        if not any(name.startswith(_MARK) for name in state):
            return None
        return OwnSide(begun=_adapter(state, _BEGUN), now=_adapter(state, _NOW))

    def state(self) -> dict[str, Tensor]:
        """As a part of what a client keeps; empty where the client trains nothing of its own."""
        scales = {f"{_SCALE}{site}": f.scale for site, f in self.begun.factors.items()}
        return {
            **{f"{_BEGUN}{name}": tensor for name, tensor in self.begun.tensors().items()},
            **{f"{_NOW}{name}": tensor for name, tensor in self.now.tensors().items()},
            **{name: torch.tensor(scale, dtype=torch.float64) for name, scale in scales.items()},
        }

    def suits(self, share: Adapter) -> bool:
        """Whether a client that would be sent this share can go on with what it has in its place."""
        return shapes_of(self.begun) == shapes_of(share)


def shapes_of(adapter: Adapter) -> Shapes:
    """Names and shapes: with the same ones an adapter fits in another's place."""
    return frozenset((name, tuple(tensor.shape)) for name, tensor in adapter.tensors().items())


def without_own_side(state: ClientState) -> ClientState:
    """The rest of what a client keeps."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(_MARK)}


def base_of(anatomy: Anatomy, job: Job) -> Adapter:
    """What the update of a job is a delta against.

    What was sent and is trained; without the client's own side where that stays with it, and with what it
    last began from where that comes up after rounds in which it stayed.
    """
    own, a = OwnSide.of(job.client_state), job.assignment
    theirs = learnt_above(anatomy, a, job.sent)
    if job.keeps_own_side:
        return theirs
    if own is not None:
        return joined(own.begun, theirs)
    return client_share(anatomy, a, job.sent) if a.is_black_box else job.sent


def _adapter(state: Mapping[str, Tensor], part: str) -> Adapter:
    scales = {name.removeprefix(_SCALE): float(t) for name, t in state.items() if name.startswith(_SCALE)}
    factors = {
        site: Factors(a=state[f"{part}{site}.lora_A"], b=state[f"{part}{site}.lora_B"], scale=scale)
        for site, scale in scales.items()
    }
    head = f"{part}{_HEAD}"
    return Adapter(
        factors=factors, head={n.removeprefix(head): t for n, t in state.items() if n.startswith(head)}
    )
