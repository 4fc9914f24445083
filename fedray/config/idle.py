"""Options that have no effect beside others."""

from collections.abc import Callable
from dataclasses import dataclass

from fedray.config.data_sections import NaturalId
from fedray.config.sections import Config
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


def has_lora(config: Config) -> bool:
    """Whether some assignment on offer trains LoRA factors."""
    return bool(config.menu.ranks) and "lora" in config.menu.tunings


def trains_blocks(config: Config) -> bool:
    """Whether some assignment on offer trains in blocks, beside a head."""
    return has_lora(config) or config.menu.tunings != ("lora",)


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
        keys=("menu.depths", "menu.int8_activations"),
        when=lambda c: not trains_blocks(c),
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
        when=lambda c: not has_lora(c),
        because="without menu.ranks and lora among menu.tunings; drop it or give ranks",
    ),
    Idle(
        keys=("menu.ranks",),
        when=lambda c: bool(c.menu.ranks) and "lora" not in c.menu.tunings,
        because="without lora among menu.tunings; drop it or name lora",
    ),
    Idle(
        keys=("menu.prompt_tokens",),
        when=lambda c: not {"prompt", "prefix"} & set(c.menu.tunings),
        because="without prompt or prefix among menu.tunings; drop it or name one of them",
    ),
    Idle(
        keys=("training.exit_distillation", "training.exit_ramp_rounds"),
        when=lambda c: not c.menu.exits,
        because="without menu.exits; drop it or give exits",
    ),
    Idle(
        keys=("training.perturbation_scale",),
        when=lambda c: c.menu.perturbations == (0,),
        because="without menu.perturbations above 0; drop it or give some",
    ),
    Idle(
        keys=("server",),
        when=lambda c: not c.menu.cuts,
        because="without menu.cuts, where every client runs whole models; drop it or give cuts",
    ),
    Idle(
        keys=("leakage",),
        when=lambda c: not c.menu.cuts,
        because="without menu.cuts, where no hidden states leave a client; drop it or give cuts",
    ),
    Idle(
        keys=("leakage.attack", "leakage.rows"),
        when=lambda c: not c.leakage.measure,
        because="without leakage.measure; drop it or set measure: true",
    ),
    Idle(
        keys=("leakage.search_rows",),
        when=lambda c: not c.leakage.measure or c.leakage.attack != "search",
        because="without a search; drop it or set leakage: {measure: true, attack: search}",
    ),
    Idle(
        keys=("privacy.cut_clip_norm", "privacy.cut_noise_multiplier"),
        when=lambda c: not c.menu.cuts,
        because="without menu.cuts, where no hidden states leave a client; drop it or give cuts",
    ),
    Idle(
        keys=("attacks.rows", "attacks.shadows"),
        when=lambda c: not c.attacks.membership,
        because="without attacks.membership; drop it or set membership: true",
    ),
    Idle(
        keys=("attacks.shadow_epochs",),
        when=lambda c: not (c.attacks.membership and c.attacks.shadows),
        because="without attacks.shadows beside membership; drop it or ask for some",
    ),
    Idle(
        keys=("attacks.clients",),
        when=lambda c: not (c.attacks.updates or c.attacks.labels),
        because="without attacks.updates or attacks.labels; drop it or set one of them",
    ),
    Idle(
        keys=("attacks.search_steps",),
        when=lambda c: not c.attacks.updates,
        because="without attacks.updates; drop it or set updates: true",
    ),
    Idle(
        keys=("menu.widths",),
        when=lambda c: c.menu.tunings == ("lora",) and not c.menu.head_only,
        because="where LoRA alone is trained, on whole blocks; drop it or name full among menu.tunings",
    ),
    Idle(
        keys=("menu.weight_bits", "menu.sparsities"),
        when=lambda c: not has_lora(c) and not c.menu.head_only,
        because="where nothing stays frozen beside what LoRA or a head trains; drop it or give ranks",
    ),
    Idle(
        keys=("menu.width_axes", "menu.width_window"),
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
    Idle(
        keys=("privacy.clip_norm", "privacy.noise_multiplier"),
        when=lambda c: c.privacy.where is None,
        because="without privacy.where; drop it or set where: central or local",
    ),
    Idle(
        keys=("privacy.delta",),
        when=lambda c: c.privacy.where is None and not c.privacy.cut_noise_multiplier,
        because="without privacy.where or privacy.cut_noise_multiplier; drop it or set one of them",
    ),
    Idle(
        keys=("privacy.delta",),
        when=lambda c: c.privacy.where is not None and not c.privacy.noise_multiplier,
        because="with privacy.noise_multiplier: 0, where there is no epsilon; drop it or add noise",
    ),
    Idle(
        keys=("audit.codecs",),
        when=lambda c: set(c.menu.up_codecs) == {"none"},
        because="without menu.up_codecs, where updates go plain; drop it or give some",
    ),
    Idle(
        keys=("secure_aggregation.fraction_bits", "secure_aggregation.min_survivors"),
        when=lambda c: c.secure_aggregation.masks == "none",
        because="without secure_aggregation.masks: pairwise; drop it or set masks",
    ),
)
