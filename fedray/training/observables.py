"""What a policy's observables ask of clients: sums over local steps, for every client and block; one mean.

``squared_loss`` is the mean over a client's real rows in all its steps of the square of each row's loss, of
which Oort's statistical utility (2010.06081) is made. ``kept_rank`` is the LoRA rank that a client would
go on with (`fedray.training.tails`). Under a cut no client knows either.

Only a block's own adapter is looked at, and only where the client trains it itself: the frozen weights have
no gradients, and under a cut those above it are the server's. Nothing here is clipped,
noised or masked: a policy that asks for statistics learns them as they are.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedray.adapter import Adapter
from fedray.assignment import Assignment, Lora
from fedray.model.anatomy import Anatomy
from fedray.observable import BLOCK_OBSERVABLES, BlockObservable, Observable
from fedray.training.optimizer import squares_per_client

SQUARED_LOSS: Observable = "squared_loss"
KEPT_RANK: Observable = "kept_rank"


def values_on_meta(observables: Sequence[Observable], num_blocks: int, *, split: bool) -> dict[str, Tensor]:
    """What crosses a link of these, without values; ``split`` tells whether under a cut."""
    known = [name for name in observables if name in BLOCK_OBSERVABLES or not split]
    sizes = [num_blocks if name in BLOCK_OBSERVABLES else 1 for name in known]
    return {name: torch.empty(size, device="meta") for name, size in zip(known, sizes, strict=True)}


class BlockStatistics:
    """Running sums of what was asked for, [C, num_blocks] each; C clients of a pack.

    Gradients are those of a client's mean loss over a batch, before clipping. Of a block's adapter with
    parameters w and gradients g, every local step adds to

    - ``grad_norm``: the norm of g;
    - ``fisher``: the mean of g * g over the block's parameters, the diagonal of the empirical Fisher
      information of a batch;
    - ``salience``: the sum of |w * g|, what leaving the parameters out would change to first order
      (1906.10771's criterion without its square). LoRA's B starts at zero, and its part of this with it.
    """

    def __init__(
        self,
        observables: Sequence[BlockObservable],
        block_of: Mapping[str, int],
        num_blocks: int,
        like: Tensor,
    ) -> None:
        """Args: block_of: a block of the model for each site; ``like``: any [C, ...] tensor of the pack."""
        self.sums = {name: like.new_zeros(len(like), num_blocks) for name in observables}
        self._block_of = block_of
        self._num_blocks = num_blocks

    @torch.no_grad()
    def see(self, leaves: Mapping[str, Tensor], grads: Sequence[Tensor], members: Tensor | None) -> None:
        """Add a step of the clients at ``members`` (None: all); tensors by flat name, [M, ...] each."""
        parts: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
            site = name.rpartition(".")[0]
            if site in self._block_of:
                parts[self._block_of[site]].append((leaf, grad))
        for block, pairs in parts.items():
            for name, sums in self.sums.items():
                value = _of_step(name, pairs)
                if members is None:
                    sums[:, block] += value
                else:
                    sums[:, block].index_add_(0, members, value)

    def of(self, client: int, sent: Adapter) -> dict[str, Tensor]:
        """One client's, [num_blocks] each, on the CPU; not a number where it trains nothing of a block."""
        counts = torch.zeros(self._num_blocks)
        for site, factors in sent.factors.items():
            counts[self._block_of[site]] += factors.b.numel() + factors.train_a * factors.a.numel()
        found: dict[str, Tensor] = {}
        for name, sums in self.sums.items():
            own = sums[client].cpu()
            # Padding of lower ranks adds nothing to a sum, and would count in a mean.
            found[name] = torch.where(counts > 0, own / counts if name == "fisher" else own, torch.nan)
        return found


def statistics_of(
    observables: Sequence[Observable], anatomy: Anatomy, assignment: Assignment, like: Tensor
) -> BlockStatistics | None:
    """What looks on at the steps of a pack, which runs one assignment's linears; None if nothing is asked."""
    of_blocks = [name for name in BLOCK_OBSERVABLES if name in observables]
    if not of_blocks:
        return None
    targets = assignment.adapter.targets if isinstance(assignment.adapter, Lora) else ()
    blocks = range(anatomy.num_blocks) if targets else ()
    block_of = {site: block for block in blocks for site in anatomy.sites(block, targets)}
    return BlockStatistics(of_blocks, block_of, anatomy.num_blocks, like)


def _of_step(name: BlockObservable, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """One block's part of a step, [M], from its leaves and their gradients."""
    match name:
        case "grad_norm":
            return squares_per_client([grad for _, grad in pairs]).sqrt()
        case "fisher":
            return squares_per_client([grad for _, grad in pairs])
        case "salience":
            return torch.stack([(leaf * grad).abs_().flatten(1).sum(1) for leaf, grad in pairs]).sum(0)
