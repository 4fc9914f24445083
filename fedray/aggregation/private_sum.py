"""Central differential privacy: the sum of updates of bounded norm, with noise, over a fixed number.

How far one client moves the sum must be known whatever the others do. So all weigh alike, the sum is divided
by the number of clients that a round asks for and not by who came or who holds an entry, and noise lies on
every entry of the state, held in this round or not: who holds what says who was there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from fedray.adapter import Adapter, GlobalState, from_tensors
from fedray.aggregation.factor_mean import FactorMean
from fedray.aggregation.padding import add_at
from fedray.aggregation.round_sum import StartRule, check_update
from fedray.aggregation.rule import Accumulator, Aggregation
from fedray.aggregation.transforms import clipped, noise_like
from fedray.errors import ConfigError, TrainingError
from fedray.mechanism import Mechanism
from fedray.seeds import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateSum(Aggregation):
    """DP-FedAvg (1710.06963) with its fixed denominator, over LoRA of unlike ranks and over parts of models.

    ``x <- x + (sum over clients of cut(D_k), padded with zeros, + N(0, (z C)^2)) / n``. Where
    all that are asked come, all hold the head and the weights whole, and stay within C, it is for z = 0 the
    rule's own mean, bit for bit.

    Attributes:
        rule: what clients are sent, and whether A is trained.
        mechanism: C and z.
        num_clients: n, asked in a round (on average, where each is drawn for itself).
        seed: of the run; the noise is that of (run, round, tensor).

    Raises:
        ConfigError: at construction, for a rule that is another sum.
    """

    rule: FactorMean
    mechanism: Mechanism
    num_clients: int
    seed: int

    def __post_init__(self) -> None:
        if self.rule.form == "delta" and self.rule.mode in ("zero_pad", "frozen_a"):
            return
        raise ConfigError(_not_known(self.rule, f"mode {self.rule.mode} with form {self.rule.form}"))

    @property
    def name(self) -> str:
        """The rule's."""
        return self.rule.name

    @property
    def breaks(self) -> frozenset[str]:
        """What the rule breaks, and L3 and L6 where fewer come than n; with noise L1 and L2, too."""
        noisy = {"L1", "L2"} if self.mechanism.noise_multiplier else set()
        return self.rule.breaks | {"L3", "L6"} | noisy

    @property
    def freezes_a(self) -> bool:
        """The rule's."""
        return self.rule.freezes_a

    def send(self, state: GlobalState, ranks: Mapping[str, int], seed: int) -> Adapter:
        """As the rule does."""
        return self.rule.send(state, ranks, seed)

    def start(self, state: GlobalState) -> Accumulator:
        """See `rule.Aggregation.start`."""
        return _NoisySum(self, state)


def private_sum(rule: Aggregation, mechanism: Mechanism, num_clients: int, seed: int) -> PrivateSum:
    """The rule under central privacy. Raises ConfigError for one whose sensitivity is not known."""
    if not isinstance(rule, FactorMean):
        raise ConfigError(_not_known(rule, "its sum"))
    return PrivateSum(rule=rule, mechanism=mechanism, num_clients=num_clients, seed=seed)


class _NoisySum:
    """Sums by flat name, float64, of the whole state's shapes."""

    def __init__(self, rule: PrivateSum, state: GlobalState) -> None:
        self._rule, self._state = rule, state
        whole = state.adapter.tensors()
        self._sums = {name: torch.zeros_like(t, dtype=torch.float64) for name, t in whole.items()}

    @torch.no_grad()
    def add(self, update: Adapter, sent: Adapter, weight: float) -> None:
        """See `rule.Accumulator.add`; also raises TrainingError for another weight than 1."""
        check_update(update, sent, weight, self._state, StartRule(shared_a=self._rule.freezes_a))
        if weight != 1.0:
            raise TrainingError(
                f"Under central privacy every update weighs 1, and one weighs {weight}; not added."
            )
        whole = self._state.adapter.factors
        other = [site for site, f in sent.factors.items() if f.scale != whole[site].scale]
        if other:
            raise TrainingError(
                f"Under central privacy all have the global scale, and one has another at {other[0]!r}; "
                "update not added."
            )
        for name, tensor in clipped(update.tensors(), self._rule.mechanism.clip_norm).items():
            add_at(self._sums[name], tensor, name, sent)

    @torch.no_grad()
    def finish(self) -> GlobalState:
        """See `rule.Accumulator.finish`; noise comes to the state of a round in which nobody was, too."""
        rule, old = self._rule, self._state
        deviation = rule.mechanism.noise_deviation
        new = {}
        for name, tensor in old.adapter.tensors().items():
            total = self._sums[name]
            if deviation:
                seed = derive_seed(rule.seed, f"central noise of {name}", old.version)
                total = total + noise_like(total, deviation, seed)
            new[name] = (tensor.double() + total / rule.num_clients).to(tensor.dtype)
        return replace(old, adapter=from_tensors(old.adapter, new), version=old.version + 1)


def _not_known(rule: Aggregation, what: str) -> str:
    return (
        f"privacy.where: central needs a sum that one client moves by a known length, and of aggregation "
        f"{rule.name!r} ({what}) that is not known; choose aggregation: {{name: factor_mean, options: "
        "{mode: zero_pad}, weights: uniform} or ffa_lora with uniform weights, or privacy.where: local."
    )
