"""What a configuration says about where things run: the server, packs, Ray, and who is audited."""

from typing import Literal

from pydantic import Field

from fedray.assignment import Attention
from fedray.config.kinds import Bytes, Count, NameOrPath, NotNegative, Positive, Section, Share


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
    """Which clients run alone under the memory counter, and what codecs are measured to cost."""

    distinct: bool = Field(True, description="Every distinct assignment and work shape of the run, once.")
    share: Share = Field(0.02, description="Share of all other client-rounds, drawn by the seed.")
    codecs: bool = Field(
        False, description="Evaluate beside a round's state that of its updates as they were before coding."
    )
