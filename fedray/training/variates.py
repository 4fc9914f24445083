"""SCAFFOLD's control variates (1910.06378, option II): what keeps unlike clients on one course.

Client i keeps c_i, an estimate of its own mean gradient, and the server c, that of all clients. Each local
step goes along ``g - c_i + c``. After K steps of rate eta from x to y_i

    c_i <- c_i - c + (x - y_i) / (K eta),        c <- c + (sum over the round's clients of p_i dc_i),

where p_i is a client's weight over that of all clients there are (the paper's 1 / N where all weigh alike)
and dc_i the change of c_i. Since ``dc_i = (x - y_i) / (K eta) - c``, the server works it out of the update
that it gets anyway: c goes down beside what a client starts from, and nothing more comes up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedray.adapter import Adapter, GlobalState
from fedray.aggregation.rule import Aggregation
from fedray.assignment import Assignment
from fedray.errors import ConfigError
from fedray.training.job import Job
from fedray.training.optimizer import LocalOptimizer

Tensors = Mapping[str, Tensor]

_OWN = "variate."
_SERVERS = "variate/"


def on_the_wire(variate: Tensors) -> dict[str, Tensor]:
    """The server's variate as it crosses beside what a client starts from, by flat name."""
    return {f"{_OWN}{name}": tensor for name, tensor in variate.items()}


def servers_variate(state: GlobalState) -> dict[str, Tensor]:
    """The server's c by the flat names of what is trained, as clients are sent it; zeros before round 1."""
    return {
        name: state.moments[_SERVERS + name].to(tensor.dtype)
        if _SERVERS + name in state.moments
        else torch.zeros_like(tensor)
        for name, tensor in state.adapter.tensors().items()
    }


def fill_corrections(corrections: Tensors, jobs: Sequence[Job]) -> None:
    """Write what each client adds to its gradients, ``c - c_i``, into [C, ...] tensors by flat name."""
    for client, job in enumerate(jobs):
        for name, servers in job.variate.items():
            own = job.client_state.get(_OWN + name)
            corrections[name][client].copy_(servers if own is None else servers - own)


def own_variate(job: Job, delta: Adapter, optimizer: LocalOptimizer) -> dict[str, Tensor]:
    """What a client keeps as its c_i after a round, by name in its state; nothing without variates.

    Args:
        job: of the round.
        delta: what it changed.
        optimizer: with the round's own rates.
    """
    if not job.variate:
        return {}
    kept = {}
    for name, gradient in _mean_gradients(job, delta, optimizer).items():
        own = job.client_state.get(_OWN + name, torch.zeros(()))
        # In float64, so that equal variates cancel to the last bit of what is kept.
        kept[_OWN + name] = (own.double() - job.variate[name].double() + gradient).to(job.variate[name].dtype)
    return kept


class ServersSum:
    """What a round's updates make of c."""

    def __init__(self, optimizer: LocalOptimizer, total_weight: float) -> None:
        """Args: total_weight: of all clients there are, asked or not."""
        self._optimizer, self._total = optimizer, total_weight
        self._sums: dict[str, Tensor] = {}
        self._weight = 0.0

    def add(self, job: Job, delta: Adapter, weight: float) -> None:
        """One client's update; nothing without variates."""
        if not job.variate:
            return
        optimizer = self._optimizer.scaled(job.learning_rate_scale)
        for name, gradient in _mean_gradients(job, delta, optimizer).items():
            self._sums[name] = self._sums.get(name, torch.zeros(())) + weight * gradient
        self._weight += weight

    def after(self, state: GlobalState) -> GlobalState:
        """The state with the next c among its moments, where there were updates."""
        if not self._sums:
            return state
        stays = 1 - self._weight / self._total
        moments = dict(state.moments)
        for name, total in self._sums.items():
            old = moments.get(_SERVERS + name, torch.zeros(()))
            moments[_SERVERS + name] = stays * old.double() + total / self._total
        return replace(state, moments=moments)


def _mean_gradients(job: Job, delta: Adapter, optimizer: LocalOptimizer) -> dict[str, Tensor]:
    """``(x - y) / (K eta)`` by flat name, float64: the mean of the directions that a client's steps took."""
    return {
        name: tensor.double() / (-job.num_steps * optimizer.rate(name))
        for name, tensor in delta.tensors().items()
    }


def refuse_variates(rule: Aggregation, menu: Sequence[Assignment]) -> None:
    """Raises ConfigError where the entries of variates are not the same thing for all, in all rounds."""
    if not rule.keeps_rank_indices:
        raise ConfigError(
            f"training.control_variates follow every rank index, and aggregation {rule.name!r} gives rank "
            "indices another meaning every round; drop one of the two, or choose a factor mean."
        )
    trained = {(entry.blocks, entry.adapter, entry.exits, entry.width): entry for entry in menu}
    if len(trained) > 1:
        one, other, *_ = trained.values()
        raise _unlike(f"{one} beside {other}")


def refuse_other_shapes(state: GlobalState, sent: Adapter, assignment: Assignment) -> None:
    """Raises ConfigError for an assignment that trains but a part of what the state has."""
    whole, own = (
        {name: tensor.shape for name, tensor in adapter.tensors().items()}
        for adapter in (state.adapter, sent)
    )
    if whole != own:
        raise _unlike(str(assignment))


def _unlike(found: str) -> ConfigError:
    return ConfigError(
        "training.control_variates are means over all clients, and of what some do not hold none is defined: "
        f"everybody has to train the same ranks, blocks and widths, found {found}; give menu one of each, or "
        "drop them."
    )
