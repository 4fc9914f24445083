"""What a configuration and its policy may both say: the pace, the interval of averaging, local rules."""

from fedray.config.sections import Config
from fedray.errors import ConfigError
from fedray.observable import LOCAL_RULES
from fedray.policy import Pace
from fedray.policy_loading import LoadedPolicy
from fedray.selection import SelectedBy
from fedray.staleness import Staleness


def agreed_pace(config: Config, policy: LoadedPolicy | SelectedBy) -> Pace:
    """The policy's, or the configuration's. Raises ConfigError if both say when a round closes."""
    given = {key: value for key, value in config.pace.model_dump().items() if value is not None}
    if policy.pace is None:
        if "staleness" in given:
            given["staleness"] = Staleness(**given["staleness"])
        return _possible(config, policy, Pace(**given))
    if given:
        raise ConfigError(
            f"pace.{next(iter(given))} has no effect with the policy {policy.name!r}, which sets the pace "
            f"itself ({policy.pace}); drop the one or the other."
        )
    return _possible(config, policy, policy.pace)


def _possible(config: Config, policy: LoadedPolicy | SelectedBy, pace: Pace) -> Pace:
    link = config.server_link
    if pace.late != "drop" and (link.up_bps is not None or link.down_bps is not None):
        says, why = "when it ends", "how long sending takes is unknown to"
        if pace.joins:
            says, why = "what will have reached its client", "who comes later slows down"
        raise ConfigError(
            f"pace.late: {pace.late} says at the start of a trip {says}, and on a server_link {why} whoever "
            "is on the way; drop one of the two."
        )
    if not config.menu.cuts:
        return pace
    if pace.late == "partial":
        raise ConfigError(
            "pace.late: partial lets every client stop when it has to, and under menu.cuts "
            f"{list(config.menu.cuts)} clients step together with a server; drop one of the two."
        )
    interval = policy.aggregation_interval or config.server.aggregation_interval or 1
    against = {
        "server.mode: shared has one adapter, which all aboard step from one version; set mode: replica": (
            config.server.mode == "shared"
        ),
        f"an aggregation_interval of {interval} averages what lies below the cuts in a round that all "
        "clients come back for; set it to 1": interval > 1,
    }
    why_not = next((reason for reason, holds in against.items() if holds), None)
    if pace.joins and why_not is not None:
        raise ConfigError(
            f"pace.late: join lets clients of several versions ride a server at once, and {why_not}, or drop "
            "pace.late: join."
        )
    return pace


def agreed_interval(config: Config, policy: LoadedPolicy | SelectedBy, *, trains_a: bool) -> int:
    """The policy's, or the configuration's. Raises ConfigError for one that has no effect or no meaning."""
    own, given = policy.aggregation_interval, config.server.aggregation_interval
    if own is not None and given is not None:
        raise ConfigError(
            f"server.aggregation_interval has no effect with the policy {policy.name!r}, which sets it to "
            f"{own} itself; drop the one or the other."
        )
    interval = own or given or 1
    if own is not None and own > 1 and not config.menu.cuts:
        raise ConfigError(
            f"The policy {policy.name!r} averages what lies below the cuts every {own} rounds, and the menu "
            "has no cuts; give menu.cuts, or choose another policy."
        )
    if interval > 1 and not trains_a:
        raise ConfigError(
            f"An aggregation_interval of {interval} lets clients keep factors of their own, and this run "
            "leaves A untrained and the same for all; set it to 1, or train A."
        )
    return interval


def agreed_local_rules(config: Config, policy: LoadedPolicy | SelectedBy) -> dict[str, float]:
    """Weights of what is added to a client's loss: the configuration's, or without cuts the policy's, or 0.

    Raises:
        ConfigError: for a gamma where nothing has a tail.
    """
    agreed = {}
    for name in LOCAL_RULES:
        given = getattr(config.training, name)
        own = 0.0 if config.menu.cuts else policy.local_rules.get(name, 0.0)
        agreed[name] = own if given is None else given
    tails = agreed["tail_penalty"] or "kept_rank" in policy.observables
    if config.training.tail_gamma is not None and not tails:
        raise ConfigError(
            f"training.tail_gamma has no effect with the policy {policy.name!r}, which asks nobody for "
            "kept_rank, and without training.tail_penalty; give the one, or drop the other."
        )
    if config.training.exit_ramp_rounds is not None and not agreed["exit_distillation"]:
        raise ConfigError(
            f"training.exit_ramp_rounds has no effect with the policy {policy.name!r}, which has no "
            "exit_distillation, and without training.exit_distillation; give the one, or drop the other."
        )
    return agreed
