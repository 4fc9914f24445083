"""What a single key cannot know: options without effect, and values that contradict each other."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from fedray.config.sections import Config, NaturalId
from fedray.config.time_sections import DeclaredShare


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """Keys that have no effect under some condition: refused when given, left out when written back.

    Attributes:
        keys: dotted; a section's name stands for all its keys.
        when: the condition; ``because`` says it and what to change.
    """

    keys: tuple[str, ...]
    when: Callable[[Config], bool]
    because: str


def _sweeps(config: Config) -> bool:
    return bool(config.menu.cuts) and config.server.order == "sweep"


IDLE = (
    Idle(
        keys=("ray",),
        when=lambda c: c.runtime == "local",
        because="with runtime: local; drop it or set runtime: on_ray",
    ),
    Idle(
        keys=("ray.num_actors",),
        when=lambda c: c.ray.clients_per_actor == 1,
        because="with ray.clients_per_actor: 1, where every client has an actor; drop one of the two",
    ),
    Idle(
        keys=("ray.object_store_memory",),
        when=lambda c: c.ray.address is not None,
        because="with ray.address, where the cluster's store already runs; drop one of the two",
    ),
    Idle(
        keys=("training.momentum",),
        when=lambda c: c.training.optim == "adamw",
        because="with training.optim: adamw; drop it or set training.optim: sgd",
    ),
    Idle(
        keys=("training.adam_beta1", "training.adam_beta2", "training.adam_epsilon"),
        when=lambda c: c.training.optim == "sgd",
        because="with training.optim: sgd; drop it or set training.optim: adamw",
    ),
    Idle(
        keys=("training.num_train_epochs",),
        when=lambda c: c.training.max_steps is not None,
        because="with training.max_steps, which sets the local work; drop one of the two",
    ),
    Idle(
        keys=("menu.depths",),
        when=lambda c: not _trains_blocks(c),
        because="without menu.ranks or another of menu.tunings; drop it or give ranks",
    ),
    Idle(
        keys=(
            "menu.target_modules",
            "menu.lora_scale",
            "menu.train_lora_a",
            "training.tail_penalty",
            "training.tail_gamma",
        ),
        when=lambda c: not _has_lora(c),
        because="without menu.ranks and lora among menu.tunings; drop it or give ranks",
    ),
    Idle(
        keys=("menu.ranks",),
        when=lambda c: bool(c.menu.ranks) and "lora" not in c.menu.tunings,
        because="without lora among menu.tunings; drop it or name lora",
    ),
    Idle(
        keys=("menu.prompt_tokens",),
        when=lambda c: "prompt" not in c.menu.tunings,
        because="without prompt among menu.tunings; drop it or name prompt",
    ),
    Idle(
        keys=("server",),
        when=lambda c: not c.menu.cuts,
        because="without menu.cuts, where every client runs whole models; drop it or give cuts",
    ),
    Idle(
        keys=("menu.widths",),
        when=lambda c: c.menu.tunings == ("lora",) and not c.menu.head_only,
        because="where LoRA alone is trained, on whole blocks; drop it or name full among menu.tunings",
    ),
    Idle(
        keys=("menu.weight_bits",),
        when=lambda c: not _has_lora(c) and not c.menu.head_only,
        because="where nothing stays frozen beside what LoRA or a head trains; drop it or give ranks",
    ),
    Idle(
        keys=("menu.width_axes",),
        when=lambda c: c.menu.widths == (1.0,),
        because="without menu.widths below 1; drop it or give widths",
    ),
    Idle(
        keys=("menu.tails", "menu.cut_codecs", "menu.local_loss", "menu.whole"),
        when=lambda c: not c.menu.cuts,
        because="without menu.cuts; drop it or give cuts",
    ),
    Idle(
        keys=("server.interconnect_bps",),
        when=lambda c: bool(c.menu.cuts) and c.server.num_shards == 1,
        because="with server.num_shards: 1, where nothing is gathered; drop it or give more shards",
    ),
    Idle(
        keys=("server.min_riders", "server.window_seconds"),
        when=lambda c: bool(c.menu.cuts) and c.server.order == "queue",
        because="with server.order: queue, which serves one at a time; drop it or set server.order: sweep",
    ),
    Idle(
        keys=("server.min_riders",),
        when=lambda c: _sweeps(c) and c.server.window_seconds == 0,
        because="with server.window_seconds: 0, where a sweep leaves with its first rider; "
        "give server.window_seconds or drop it",
    ),
    Idle(
        keys=("server.window_seconds",),
        when=lambda c: _sweeps(c) and c.server.min_riders == 1,
        because="with server.min_riders: 1, where a sweep leaves with its first rider; "
        "give server.min_riders or drop it",
    ),
    Idle(
        keys=("server.deepspeed", "server.evaluation"),
        when=lambda c: bool(c.menu.cuts) and c.server.engine == "in_process",
        because="with server.engine: in_process; drop it or set server.engine: zero",
    ),
    Idle(
        keys=("data.subset", "data.split"),
        when=lambda c: c.data.source in ("docstrings", "glyphs"),
        because="with data.source: docstrings or glyphs, which are one set; drop it",
    ),
    Idle(
        keys=("data.modules", "data.max_rows_per_module"),
        when=lambda c: c.data.source != "docstrings",
        because="unless data.source is docstrings; drop it",
    ),
    Idle(
        keys=("data.num_clients",),
        when=lambda c: isinstance(c.data.partitioner, NaturalId),
        because="with the natural_id partitioner, whose column says who the clients are; "
        "drop it or give data.partitioner.max_clients",
    ),
    Idle(
        keys=(
            "pace.staleness",
            "pace.mixing",
            "pace.normalizer",
            "pace.max_staleness",
        ),
        when=lambda c: c.pace.late != "join",
        because="without pace.late: join, where no round overlaps another; drop it or set pace.late: join",
    ),
    Idle(
        keys=("pace.mixing",),
        when=lambda c: c.pace.late == "join" and c.pace.normalizer == "sum",
        because="with pace.normalizer: sum, which it would be divided by; drop it or set normalizer: goal",
    ),
    Idle(
        keys=("actual.budgets_period_seconds",),
        when=lambda c: c.actual.budgets is None,
        because="without actual.budgets; drop it or give them",
    ),
    Idle(
        keys=("dropouts",),
        when=lambda c: not isinstance(c.availability, DeclaredShare),
        because="with availability: trace or diurnal, where who goes offline drops out; drop it",
    ),
    Idle(
        keys=("aggregation.options",),
        when=lambda c: c.aggregation.name == "auto",
        because="with aggregation.name: auto, where the policy chooses the rule; name the rule or drop it",
    ),
)


def idle_keys(config: Config) -> Iterator[tuple[str, str]]:
    """Each dotted key without effect under this configuration, and why."""
    for rule in IDLE:
        if rule.when(config):
            yield from ((key, rule.because) for key in rule.keys)


def broken_rules(config: Config) -> Iterator[str]:
    """One sentence for each option without effect and for each contradiction."""
    for key, because in idle_keys(config):
        for given in _given(config, key):
            yield f"{given} has no effect {because}."
    for check in _CONTRADICTIONS:
        sentence = check(config)
        if sentence:
            yield sentence


def _given(config: Config, key: str) -> Iterator[str]:
    """The keys at or under ``key`` that were given a value; null and an empty group give none."""
    parent, section = "", config
    *sections, last = key.split(".")
    for name in sections:
        parent, section = f"{parent}{name}.", getattr(section, name)
    value = getattr(section, last)
    if isinstance(value, BaseModel):
        for field in sorted(value.model_fields_set):
            yield from _given(config, f"{key}.{field}")
    elif last in section.model_fields_set and value is not None and value != {}:
        yield key


def _shares(config: Config) -> str | None:
    held_out = config.data.test_share + config.data.validation_share
    if held_out < 1:
        return None
    return (
        f"data.test_share and data.validation_share leave no rows to train on: together they are "
        f"{held_out:g}, and must be below 1."
    )


def _unseen(config: Config) -> str | None:
    unseen = config.data.unseen_clients
    if unseen < 1 or unseen == int(unseen):
        return None
    return f"data.unseen_clients must be a whole number or a share below 1, found {unseen:g}."


def _trained_clients(config: Config) -> str | None:
    data, asked, devices = config.data, config.rounds.clients_per_round, config.fleet.num_clients
    if devices is not None and asked > devices:
        return (
            f"rounds.clients_per_round asks for {asked} clients, and fleet.num_clients is {devices}; "
            "ask for fewer or give more."
        )
    if (
        devices is not None
        or isinstance(data.partitioner, NaturalId)
        or data.unseen_clients != int(data.unseen_clients)
    ):
        return None
    training = data.num_clients - int(data.unseen_clients)
    if asked <= training:
        return None
    return (
        f"rounds.clients_per_round asks for {asked} clients, and only {training} train "
        f"(data.num_clients {data.num_clients} less data.unseen_clients {int(data.unseen_clients)}); "
        "ask for fewer or give more."
    )


def _menu(config: Config) -> str | None:
    if _trains_blocks(config) or config.menu.head_only:
        return None
    return "menu offers nothing: menu.ranks is empty and menu.head_only is false; give one of them."


def _has_lora(config: Config) -> bool:
    return bool(config.menu.ranks) and "lora" in config.menu.tunings


def _trains_blocks(config: Config) -> bool:
    return _has_lora(config) or config.menu.tunings != ("lora",)


def _recompute(config: Config) -> str | None:
    if _trains_blocks(config) or config.menu.recompute == (False,):
        return None
    return "menu.recompute has nothing to recompute without menu.ranks; drop it or give ranks."


def _proximal(config: Config) -> str | None:
    mu = config.training.proximal_mu
    if not mu or not config.menu.cuts:
        return None
    return (
        f"training.proximal_mu = {mu:g} holds whole models near a round's start, and under menu.cuts a "
        "server trains a part of them; drop one of the two."
    )


def _tails(config: Config) -> str | None:
    penalty = config.training.tail_penalty
    if not penalty or not config.menu.cuts:
        return None
    return (
        f"training.tail_penalty = {penalty:g} is of clients that train whole models, and under menu.cuts a "
        "server trains a part of them; drop one of the two."
    )


def _joining(config: Config) -> str | None:
    pace = config.pace
    if pace.late == "partial" and pace.deadline_seconds is None:
        return "pace.late: partial cuts work short at a deadline; give pace.deadline_seconds."
    if pace.late != "join" or pace.goal is not None or pace.deadline_seconds is not None:
        return None
    return "pace.late: join never closes a round; give pace.goal, pace.deadline_seconds or both."


def _pace(config: Config) -> str | None:
    goal, asked = config.pace.goal, config.rounds.clients_per_round
    if goal is None or goal <= asked or config.pace.late == "join":
        return None
    return (
        f"pace.goal waits for {goal} updates, and rounds.clients_per_round asks {asked} clients only; "
        "lower the one or raise the other."
    )


def _actors(config: Config) -> str | None:
    size = config.packs.clients_per_pack
    if config.ray.clients_per_actor is None or size == 1:
        return None
    return (
        f"ray.clients_per_actor: 1 lets every client train in its own actor, and packs.clients_per_pack "
        f"trains {size} together; set packs.clients_per_pack to 1."
    )


def _whole_models(config: Config) -> str | None:
    if not config.menu.cuts or config.server.evaluation == "whole" or not config.menu.whole:
        return None
    return (
        "server.evaluation: sweep keeps the whole backbone out of every process, and menu.whole: true offers "
        "clients whole models; set menu.whole: false, or server.evaluation: whole."
    )


_CONTRADICTIONS: tuple[Callable[[Config], str | None], ...] = (
    _shares,
    _unseen,
    _trained_clients,
    _menu,
    _recompute,
    _proximal,
    _tails,
    _pace,
    _joining,
    _actors,
    _whole_models,
)


def effective(config: Config) -> Mapping[str, Any]:
    """Every key that has an effect, with its value, as plain lists, texts and numbers."""
    tree: dict[str, Any] = config.model_dump(mode="json")
    for key, _ in idle_keys(config):
        group: dict[str, Any] = tree
        *sections, last = key.split(".")
        for name in sections:
            group = group.get(name, {})
        group.pop(last, None)
    return tree
