"""Every key of a configuration, with its unit, its default and what it means.

Names are Hugging Face's where they have one. Units stand in the names; sizes may be written with a unit.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from fedray.assignment import Attention, Dtype
from fedray.config.kinds import (
    AtLeastOne,
    Bytes,
    Count,
    Many,
    NameAlone,
    Named,
    NameOrPath,
    NotNegative,
    OneOrMany,
    PartShare,
    Positive,
    Section,
    Share,
    Tunings,
)
from fedray.config.time_sections import ActualSection, Availability, DeclaredShare, PaceSection
from fedray.width import Axis


class ModelSection(Section):
    """The pretrained model."""

    name: NameOrPath = Field(
        "minilm", description="minilm (all-MiniLM-L6-v2, in the demo extra), a Hugging Face id, or a folder."
    )


class Iid(Section):
    """Equal shares of the shuffled rows."""

    name: Literal["iid"] = Field("iid", description="Equal shares of the shuffled rows.")


class Dirichlet(Section):
    """Of every label, shares drawn from a Dirichlet distribution (1905.12022)."""

    name: Literal["dirichlet"] = Field("dirichlet", description="Label shares drawn from Dirichlet(alpha).")
    alpha: Positive = Field(0.3, description="The smaller, the more unlike the clients.")
    label_column: str = Field("label", description="Column that holds the label.")
    min_partition_size: Count = Field(1, description="Rows that every client gets at least.")


class NaturalId(Section):
    """One client for every value of a column."""

    name: Literal["natural_id"] = Field("natural_id", description="One client for every value of a column.")
    column: str = Field(description="Column whose values are the clients: a speaker, an author, a device.")
    min_rows: Count = Field(1, description="Clients with fewer rows are left out.")
    max_clients: Count | None = Field(None, description="At most so many clients, drawn by the seed.")


class Pathological(Section):
    """Every client holds a few labels only (1602.05629)."""

    name: Literal["pathological"] = Field("pathological", description="A few labels for every client.")
    num_classes_per_partition: Count = Field(2, description="Labels of one client.")
    label_column: str = Field("label", description="Column that holds the label.")


Partitioner = Annotated[Iid | Dirichlet | NaturalId | Pathological, Field(discriminator="name"), NameAlone]


class DataSection(Section):
    """The rows, and who holds which."""

    source: NameOrPath = Field(
        "docstrings",
        description="docstrings (of Python's own library), glyphs (images of matplotlib's fonts), a datasets "
        "name, or a local file or folder.",
    )
    subset: str | None = Field(None, description="Configuration of a data set that has several.")
    split: str | None = Field(None, description="A split, or a slice such as train[:1000]; train if absent.")
    modules: Many[str] | None = Field(
        None, description="Modules whose docstrings are read; a fixed list of 16 if absent."
    )
    max_rows_per_module: Count = Field(150, description="At most so many docstrings of each module.")
    max_rows: Count | None = Field(None, description="At most so many rows in all, drawn by the seed.")
    max_length: Count | None = Field(
        None,
        description="Tokens of a text at most, longer ones are cut; 128 if absent. Not for images.",
    )
    partitioner: Partitioner = Field(
        default_factory=Dirichlet, description="How rows are divided among clients (flwr-datasets)."
    )
    num_clients: Count = Field(32, description="Clients that the rows are divided among.")
    test_share: PartShare = Field(0.2, description="Share of the rows kept for testing.")
    validation_share: PartShare = Field(0.0, description="Share of the rows kept for validation.")
    per_client: bool = Field(
        False, description="Take test and validation rows from every client's own, not from all alike."
    )
    unseen_clients: NotNegative = Field(
        0, description="Clients that never train: a number, or below 1 a share of all clients."
    )


class FleetSection(Section):
    """The devices."""

    name: NameOrPath = Field(
        "edge", description="edge, phones, silos, or a file: a YAML mix, a CSV or Parquet table of clients."
    )
    memory_share: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Share of each device's RAM that this job may use; the mix's own if absent."
    )
    correlation: Share | None = Field(
        None, description="How far memory, compute and links go together, 0 to 1; the mix's own if absent."
    )
    num_clients: Count | None = Field(
        None,
        description="Devices of a simulation, each with as many rows as one of the data's clients, drawn by "
        "the seed; one for each of these if absent.",
    )
    size_follows_memory: bool = Field(False, description="Clients with more memory hold more rows.")


class MenuSection(Section):
    """The knobs whose combinations are the assignments on offer."""

    ranks: Many[Count] = Field((8,), description="LoRA ranks of a trained block.")
    depths: AtLeastOne[Count | Literal["all"]] = Field(
        ("all",), description="Trained blocks, counted from the top; all is every block."
    )
    tunings: Tunings = Field(
        ("lora",),
        description="A block's LoRA factors, all its weights, its biases or IA3's vectors; or a prompt.",
    )
    prompt_tokens: AtLeastOne[Count] = Field((20,), description="Lengths of prompts.")
    widths: AtLeastOne[Annotated[float, Field(gt=0, le=1)]] = Field(
        (1.0,), description="Shares of every block's width that a client may hold; 1 is the whole model."
    )
    width_axes: AtLeastOne[Axis] = Field(
        ("ffn",), description="What is narrowed: heads, head_dim (inside each), ffn, hidden (with the norms)."
    )
    recompute: AtLeastOne[bool] = Field((False,), description="Activation checkpointing, off and on.")
    dtypes: AtLeastOne[Dtype] = Field(("fp32",), description="Of the frozen weights and the arithmetic.")
    weight_bits: AtLeastOne[Literal["all", 8, 4]] = Field(
        ("all",), description="Of the frozen linears of a client's blocks: rounded to 8 or 4, or all of them."
    )
    per_device_train_batch_size: AtLeastOne[Count] = Field((8,), description="Rows in one local step.")
    target_modules: AtLeastOne[str] | None = Field(
        None, description="Adapted linears by the last part of their name; the family's usual if absent."
    )
    lora_scale: Positive = Field(2.0, description="lora_alpha / rank, one factor for all ranks.")
    train_lora_a: bool | None = Field(
        None,
        description="Train LoRA's A beside B, or leave it as drawn; as the aggregation needs if absent.",
    )
    head_only: bool = Field(False, description="Also offer the head alone, without an adapter.")
    cuts: Many[Annotated[int, Field(ge=0)]] = Field(
        (), description="Leading blocks a client keeps while the server runs the others; none if empty."
    )
    tails: AtLeastOne[Annotated[int, Field(ge=0)]] = Field(
        (0,), description="Trailing blocks it keeps too, with the head and the labels (the U-shape)."
    )
    cut_codecs: AtLeastOne[str] = Field(
        ("none",), description="What crosses a cut is sent as: none, bf16, int8, int4, top1 to top99 (%)."
    )
    local_loss: AtLeastOne[bool] = Field(
        (False,), description="Train below the cut against a head there, no gradient from the server."
    )
    whole: bool = Field(True, description="Offer whole models beside those with a cut.")
    up_codecs: AtLeastOne[str] = Field(
        ("none",),
        description="An update is sent as: none, bf16, int8, int4, top1 to top99 (%), rank1, rank2, ...",
    )
    down_codecs: AtLeastOne[str] = Field(
        ("none",), description="What a client starts from is sent as: the same names."
    )


class ServerSection(Section):
    """The server that runs the blocks above the cuts: the declared one, and how it really runs."""

    num_shards: Count = Field(1, description="Shards that the frozen blocks are divided among.")
    flops_per_s: Positive = Field(1e14, description="Of one shard; declared, sets virtual time.")
    memory_bytes: Bytes = Field(80 * 10**9, description="Of one shard; declared, limits who is admitted.")
    interconnect_bps: Positive = Field(
        4.8e12, description="Bits a second that reach a shard from the others; declared, sets virtual time."
    )
    watts: NotNegative = Field(400.0, description="Of one shard while it sweeps; declared.")
    min_riders: Count = Field(1, description="Clients aboard with which a sweep leaves at once.")
    window_seconds: NotNegative = Field(
        0.0, description="Virtual seconds after which it leaves with fewer, from the first one's boarding."
    )
    mode: Literal["replica", "shared"] = Field(
        "replica", description="An adapter on the server for every client, or one, stepped in every sweep."
    )
    order: Literal["sweep", "queue"] = Field(
        "sweep", description="All who wait ride together, or one after the other as they came."
    )
    aggregation_interval: Count | None = Field(
        None, description="Every so many rounds what lies below the cuts is averaged; every round if absent."
    )
    engine: Literal["in_process", "zero"] = Field(
        "in_process",
        description="On Ray: the blocks in one process, or on DeepSpeed ZeRO-3 shards; locally always here.",
    )
    deepspeed: NameOrPath | None = Field(
        None, description="A DeepSpeed JSON with auto in it: a shipped one's name, or a path."
    )
    evaluation: Literal["whole", "sweep"] = Field(
        "whole",
        description="The global model is evaluated by who holds all of it, or by sweeps over the shards.",
    )
    attention: Attention = Field("memory_efficient", description="The kernel of the server's blocks.")
    recompute: bool = Field(False, description="Activation checkpointing of the server's blocks.")
    client_deadline_seconds: Positive = Field(
        600.0, description="Wall seconds for a client's part of a step, after which it is dropped."
    )


class TrainingSection(Section):
    """What a client does locally."""

    optim: Literal["adamw", "sgd"] = Field("adamw", description="The local optimizer.")
    learning_rate: NotNegative = Field(1e-3, description="Step size of the first round.")
    head_learning_rate: NotNegative | None = Field(
        None, description="Step size of a classifier's head, which starts from nothing; the same if absent."
    )
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="How it falls from round to round; within a round it stays."
    )
    proximal_mu: NotNegative = Field(
        0.0, description="FedProx: mu / 2 times the squared distance to a round's start is added to the loss."
    )
    tail_penalty: NotNegative | None = Field(
        None,
        description="HetLoRA: this times the norms of a client's last LoRA ranks is added to the loss; as "
        "the policy has it if absent.",
    )
    tail_gamma: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="HetLoRA: the last ranks of r are those from floor(gamma r) on; 0.99 if absent."
    )
    weight_decay: NotNegative = Field(0.0, description="Decoupled for adamw, added to the gradient for sgd.")
    momentum: PartShare = Field(0.0, description="Of sgd.")
    adam_beta1: PartShare = Field(0.9, description="Of adamw: decay of the first moment.")
    adam_beta2: PartShare = Field(0.999, description="Of adamw: decay of the second moment.")
    adam_epsilon: Positive = Field(1e-8, description="Of adamw: added to the denominator.")
    max_grad_norm: Positive | None = Field(1.0, description="Each client's gradient is cut to this norm.")
    num_train_epochs: Count = Field(1, description="Passes over a client's own rows in a round.")
    max_steps: Count | None = Field(None, description="Local steps in a round, in place of epochs.")


class RoundsSection(Section):
    """How many rounds, with how many clients."""

    num_rounds: Count = Field(10, description="Rounds of the run.")
    clients_per_round: Count = Field(
        8, description="Clients asked in a round; at work at once where rounds overlap."
    )
    eval_rounds: Count = Field(1, description="Rounds between two evaluations; the last is always evaluated.")


class NoServerOptimizer(Section):
    """What the rule makes of a round is the next state."""

    name: Literal["none"] = Field("none", description="What the rule makes of a round is the next state.")


class ServerMomentum(Section):
    """FedAvgM (1909.06335)."""

    name: Literal["momentum"] = Field("momentum", description="FedAvgM.")
    learning_rate: Positive = Field(1.0, description="Of the server.")
    beta1: PartShare = Field(0.9, description="Share of the rounds before that is kept.")


class ServerAdagrad(Section):
    """FedAdagrad (2003.00295)."""

    name: Literal["adagrad"] = Field("adagrad", description="FedAdagrad.")
    learning_rate: Positive = Field(description="Of the server.")
    beta1: PartShare = Field(0.0, description="Decay of the first moment.")
    tau: Positive = Field(1e-3, description="Added to the denominator; the smaller, the more adaptive.")


class ServerAdam(Section):
    """FedAdam (2003.00295)."""

    name: Literal["adam"] = Field("adam", description="FedAdam.")
    learning_rate: Positive = Field(description="Of the server.")
    beta1: PartShare = Field(0.9, description="Decay of the first moment.")
    beta2: PartShare = Field(0.99, description="Decay of the second moment.")
    tau: Positive = Field(1e-3, description="Added to the denominator; the smaller, the more adaptive.")


class ServerYogi(Section):
    """FedYogi (2003.00295)."""

    name: Literal["yogi"] = Field("yogi", description="FedYogi.")
    learning_rate: Positive = Field(description="Of the server.")
    beta1: PartShare = Field(0.9, description="Decay of the first moment.")
    beta2: PartShare = Field(0.99, description="How slowly the second moment follows.")
    tau: Positive = Field(1e-3, description="Added to the denominator; the smaller, the more adaptive.")


ServerOptimizer = ServerMomentum | ServerAdagrad | ServerAdam | ServerYogi


class AggregationSection(Section):
    """How unlike updates become one state."""

    name: NameOrPath = Field(
        "auto", description="A rule's name or file; auto is the one the policy asks for."
    )
    options: Mapping[str, Any] = Field(default_factory=dict, description="Of the rule, such as mode or form.")
    weights: Literal["rows", "uniform"] | None = Field(
        None, description="An update weighs its rows, or all alike; as the rule's paper has it if absent."
    )
    clip_norm: Positive | None = Field(None, description="Each update is cut to this norm.")
    server_optimizer: Annotated[
        NoServerOptimizer | ServerOptimizer, Field(discriminator="name"), NameAlone
    ] = Field(
        default_factory=NoServerOptimizer,
        description="What the server makes of the round's change of the state, with moments over rounds.",
    )


class PacksSection(Section):
    """How clients share a forward pass. Part of what a run computes, on Ray or not."""

    clients_per_pack: Count = Field(8, description="Clients trained in one forward pass at most.")
    threads_per_pack: Count = Field(1, description="Threads that train one pack.")
    tokens_per_wave: Count = Field(4096, description="Padded tokens of one forward pass at most.")


class RaySection(Section):
    """Where actors run."""

    address: str | None = Field(None, description="Of a running cluster; Ray starts here if absent.")
    num_actors: Count | None = Field(None, description="Actors that carry clients; one per CPU if absent.")
    clients_per_actor: Literal[1] | None = Field(
        None, description="1 gives every client its own actor, its declared memory as a reservation."
    )
    object_store_memory: Bytes | None = Field(
        None, description="Bytes of Ray's object store, such as 2 GiB; Ray's own choice if absent."
    )


class AuditSection(Section):
    """Which clients run alone under the memory counter."""

    distinct: bool = Field(True, description="Every distinct assignment and work shape of the run, once.")
    share: Share = Field(0.02, description="Share of all other client-rounds, drawn by the seed.")


class Config(Section):
    """One run."""

    model: Annotated[ModelSection, NameAlone] = Field(
        default_factory=ModelSection, description="The pretrained model."
    )
    task: Named = Field(Named(name="text_classification"), description="What is learnt.")
    data: DataSection = Field(default_factory=DataSection, description="The rows, and who holds which.")
    fleet: Annotated[FleetSection, NameAlone] = Field(
        default_factory=FleetSection, description="The devices."
    )
    menu: MenuSection = Field(default_factory=MenuSection, description="The assignments on offer.")
    training: TrainingSection = Field(default_factory=TrainingSection, description="The local work.")
    rounds: RoundsSection = Field(default_factory=RoundsSection, description="How many, how large.")
    policy: Named = Field(Named(name="largest_that_fits"), description="Who gets what.")
    selection: Named | None = Field(
        None, description="Who is asked, whatever the policy gives them; as the policy says if absent."
    )
    aggregation: Annotated[AggregationSection, NameAlone] = Field(
        default_factory=AggregationSection, description="How updates become one state."
    )
    pace: PaceSection = Field(default_factory=PaceSection, description="When a round closes.")
    actual: ActualSection = Field(
        default_factory=ActualSection, description="What devices really are, beside what they declare."
    )
    availability: Availability = Field(default_factory=DeclaredShare, description="Who is online when.")
    dropouts: bool = Field(False, description="Clients drop out of rounds as their profiles declare.")
    provision: Literal["first_contact", "preinstalled"] = Field(
        "first_contact", description="Frozen weights reach a client when first needed, or lie there already."
    )
    runtime: Literal["local", "on_ray"] = Field("on_ray", description="This process alone, or actors on Ray.")
    server: ServerSection = Field(
        default_factory=ServerSection, description="The server above the cuts, declared and real."
    )
    packs: PacksSection = Field(default_factory=PacksSection, description="How clients share a forward pass.")
    ray: RaySection = Field(default_factory=RaySection, description="Where actors run.")
    audit: AuditSection = Field(default_factory=AuditSection, description="Who runs alone under the counter.")
    report_to: OneOrMany[str] = Field((), description="Trackers by accelerate's name, such as wandb.")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="All randomness derives from it.")
