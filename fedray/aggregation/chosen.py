"""The rule that a configuration and its policy come to, and what it asks of the clients' work."""

from dataclasses import dataclass

from fedray.aggregation.presets import PRESETS, make_aggregation
from fedray.aggregation.private_sum import private_sum
from fedray.aggregation.robust import Robust
from fedray.aggregation.rule import Aggregation
from fedray.aggregation.secure_sum import secure_sum
from fedray.aggregation.server_optimizer import ServerStepped
from fedray.config.aggregation_sections import NoServerOptimizer
from fedray.config.sections import Config
from fedray.errors import ConfigError
from fedray.mechanism import Mechanism


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenRule:
    """A run's rule.

    Attributes:
        weighs_rows: an update weighs its client's rows; otherwise all weigh alike.
        trains_a: whether LoRA's A is trained beside B, by every client in every round.
    """

    rule: Aggregation
    weighs_rows: bool
    trains_a: bool


def choose_rule(config: Config, asked: str | None, privacy: Mechanism | None = None) -> ChosenRule:
    """The configuration's rule, or with ``auto`` the one that the policy asks for.

    Args:
        config: checked already.
        asked: the policy's, by name.
        privacy: what is done to every update.

    Raises:
        ConfigError: for a rule, an option or a value that is not known, or that contradicts the menu or
            what protects updates.
    """
    section = config.aggregation
    name = (asked or "factor_mean") if section.name == "auto" else section.name
    clip = {} if section.clip_norm is None else {"clip_norm": section.clip_norm}
    rule = make_aggregation(name, {**section.options, **clip})
    usual = PRESETS[name].weights if name in PRESETS else "rows"
    weighs_rows = (section.weights or usual) == "rows"
    if weighs_rows and isinstance(rule, Robust):
        raise ConfigError(
            f"aggregation.weights: rows has no effect with {name}, under which all updates weigh alike: how "
            "many rows a client has is what it says; drop it."
        )
    if privacy is not None and privacy.where == "central":
        rule = private_sum(rule, privacy, config.rounds.clients_per_round, config.seed)
        _refuse_row_weights(weighs_rows)
    if config.secure_aggregation.masks == "pairwise":
        rule = secure_sum(rule)
    if not isinstance(section.server_optimizer, NoServerOptimizer):
        rule = ServerStepped(rule=rule, optimizer=section.server_optimizer)
    return ChosenRule(
        rule=rule,
        weighs_rows=weighs_rows,
        trains_a=_trains_a(config.menu.train_lora_a, rule),
    )


def _refuse_row_weights(weighs_rows: bool) -> None:
    if weighs_rows:
        raise ConfigError(
            "privacy.where: central bounds what one client does to the sum, and updates weigh their clients' "
            "rows, of which there may be any number; set aggregation.weights: uniform."
        )


def _trains_a(asked: bool | None, rule: Aggregation) -> bool:
    if rule.freezes_a and asked:
        raise ConfigError(
            f"aggregation {rule.name!r} averages B over one A that nobody trains, and menu.train_lora_a is "
            "true; drop the one or the other."
        )
    if asked is False and not rule.keeps_rank_indices:
        raise ConfigError(
            f"menu.train_lora_a: false keeps A as it was drawn, and aggregation {rule.name!r} gives clients "
            "another A every round; drop it, or choose ffa_lora or a factor mean."
        )
    return not rule.freezes_a if asked is None else asked
