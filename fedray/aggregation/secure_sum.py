"""Secure aggregation: a mean of factors whose server sees masked integers and their sum, and no update.

An update is weighted, padded with zeros to all that anybody trains, rounded to fixed point, and masked
(`fedray.masking`). Who holds which entries and what each weighs the server knows: it gave the assignments. So
it divides the sum as the rule would, entry by entry.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedray.adapter import Adapter, GlobalState, from_tensors
from fedray.aggregation.factor_mean import FactorMean
from fedray.aggregation.padding import add_at
from fedray.aggregation.rule import Accumulator, Aggregation
from fedray.aggregation.server_optimizer import ServerStepped
from fedray.errors import ConfigError, TrainingError
from fedray.masking import Masking, Words

# The flat name of the one tensor that a client sends.
MASKED = "masked"


@dataclass(frozen=True, slots=True, kw_only=True)
class SecureSum(Aggregation):
    """A factor mean of changes over masked updates, rounded to fixed point.

    Attributes:
        rule: with modes zero_pad, dimension or frozen_a, whose weights are known beforehand.
        masking: of the round; it cannot sum without.

    Raises:
        ConfigError: at construction, for a rule that looks at single updates.
    """

    rule: FactorMean
    masking: Masking | None = None

    def __post_init__(self) -> None:
        if self.rule.mode == "hetlora":
            raise ConfigError(_looks_at_single(self.rule, "weighs updates by their norms"))
        if self.rule.form == "state":
            raise ConfigError(_looks_at_single(self.rule, "averages states, not changes"))
        if self.rule.transforms:
            raise ConfigError(_looks_at_single(self.rule, "cuts updates by aggregation.clip_norm"))

    @property
    def name(self) -> str:
        """The rule's."""
        return self.rule.name

    @property
    def breaks(self) -> frozenset[str]:
        """The rule's."""
        return self.rule.breaks

    @property
    def freezes_a(self) -> bool:
        """The rule's."""
        return self.rule.freezes_a

    def send(self, state: GlobalState, ranks: Mapping[str, int], seed: int) -> Adapter:
        """As the rule does."""
        return self.rule.send(state, ranks, seed)

    def start(self, state: GlobalState) -> Accumulator:
        """See `rule.Aggregation.start`; updates are what `masked` gives, one tensor each."""
        assert self.masking is not None, "with_masking comes first"
        return _MaskedSum(self.rule, self.masking, state)


def secure_sum(rule: Aggregation) -> SecureSum:
    """The rule over masked updates. Raises ConfigError for one that needs single updates."""
    if not isinstance(rule, FactorMean):
        raise ConfigError(_looks_at_single(rule, "is no mean of factors"))
    return SecureSum(rule=rule)


def with_masking(rule: Aggregation, masking: Masking | None) -> Aggregation:
    """The rule for one round; as it is without secure aggregation."""
    match rule:
        case ServerStepped():
            return replace(rule, rule=with_masking(rule.rule, masking))
        case SecureSum():
            return replace(rule, masking=masking)
        case _:
            return rule


def masked(masking: Masking, client: int, delta: Adapter, weight: float) -> dict[str, Tensor]:
    """What a client sends: its weighted update with its masks, [length] of 32-bit words."""
    words = fixed_point(masking, delta, weight) + masking.mask_of(client)
    return {MASKED: torch.from_numpy(words.view(np.int32))}


def as_masked(client: int, coded: Mapping[str, Tensor]) -> Adapter:
    """A masked update as a rule's sum takes it: it says whose it is, and nothing else."""
    return Adapter(weights={f"{MASKED}.{client}": coded[MASKED]})


def fixed_point(masking: Masking, delta: Adapter, weight: float) -> Words:
    """An update before it is masked: entries times its share of all weights, where they lie in the whole."""
    whole = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in masking.shapes.items()}
    share = weight / masking.total_weight
    for name, tensor in delta.tensors().items():
        add_at(whole[name], share * tensor.double().clamp(-masking.limit, masking.limit), name, delta)
    return masking.words(torch.cat([tensor.flatten() for tensor in whole.values()]).numpy())


class _MaskedSum:
    """The words of all that came, and by entry the weight of those that hold it."""

    def __init__(self, rule: FactorMean, masking: Masking, state: GlobalState) -> None:
        self._rule, self._masking, self._state = rule, masking, state
        self._words = np.zeros(masking.length, np.uint32)
        self._held = {n: torch.zeros(shape, dtype=torch.float64) for n, shape in masking.shapes.items()}
        self._came: list[int] = []

    def add(self, update: Adapter, sent: Adapter, weight: float) -> None:
        """Add a masked update.

        Raises:
            TrainingError: it is of nobody who agreed on seeds or sent already, of another length, or another
                scale than the global one was sent.
        """
        ((name, words),) = update.weights.items()
        client = int(name.removeprefix(f"{MASKED}."))
        if client not in self._masking.clients or client in self._came or len(words) != len(self._words):
            raise TrainingError(
                f"Client {client} sent {len(words)} masked words, and {len(self._words)} were agreed on with "
                f"{len(self._masking.clients)} clients, once from each; not added."
            )
        whole = self._state.adapter.factors
        other = [site for site, f in sent.factors.items() if f.scale != whole[site].scale]
        if other:
            raise TrainingError(
                f"Masked updates are summed at the global scale, and client {client} has another at "
                f"{other[0]!r}; not added."
            )
        self._words += words.numpy().view(np.uint32)
        self._came.append(client)
        self._hold(sent, weight / self._masking.total_weight)

    def finish(self) -> GlobalState:
        """See `rule.Accumulator.finish`; as it was where too few came to take the masks away."""
        if len(self._came) < self._masking.needed:
            return self._state
        sums = self._masking.values(self._words - self._masking.left_in(self._came))
        old, new, start = self._state.adapter, {}, 0
        for name, tensor in old.tensors().items():
            held = self._held[name]
            total = torch.from_numpy(sums[start : start + held.numel()].reshape(held.shape))
            start += held.numel()
            moved = (tensor.double() + total / held.clamp(min=1e-300)).to(tensor.dtype)
            new[name] = torch.where(held > 0, moved, tensor)
        return replace(self._state, adapter=from_tensors(old, new), version=self._state.version + 1)

    def _hold(self, sent: Adapter, share: float) -> None:
        """Count a client's share where the rule's mean is divided by it."""
        for name, tensor in sent.tensors().items():
            if name.rpartition(".")[0] in sent.factors and self._rule.mode == "frozen_a":
                self._held[name] += share
            elif name.rpartition(".")[0] not in sent.factors or self._rule.mode == "dimension":
                add_at(self._held[name], torch.full(tensor.shape, share, dtype=torch.float64), name, sent)
        if self._rule.mode == "zero_pad":
            for name in self._held:
                if name.rpartition(".")[0] in self._state.adapter.factors:
                    self._held[name] += share


def _looks_at_single(rule: Aggregation, why: str) -> str:
    return (
        f"secure_aggregation shows the server a sum and no single update, and aggregation {rule.name!r} "
        f"{why}; choose factor_mean, coverage_mean or ffa_lora, or drop it."
    )
