"""What a configuration stands for: rows and who holds them, devices, menu, policy, rule, and the tracer.

No weight is loaded here, so a plan is cheap; `furnish` brings the weights for a run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedConfig, PreTrainedModel

from fedray.actual import Actual, actual_of
from fedray.aggregation.chosen import choose_rule
from fedray.aggregation.joining import refuse_to_join
from fedray.aggregation.rule import Aggregation
from fedray.agreed import agreed_interval, agreed_local_rules, agreed_pace
from fedray.assignment import Assignment, Attention, Dtype
from fedray.battery import Batteries
from fedray.charging import batteries_of
from fedray.clock import draw_online
from fedray.config.sections import Config
from fedray.cost import Footprint, Ints, WorkShape
from fedray.crowd import fleet_of, partitions_of, rows_of
from fedray.errors import ConfigError
from fedray.fleet import Fleet
from fedray.leakage import leakage_of
from fedray.mechanism import Mechanism
from fedray.model.anatomy import Anatomy, dissect
from fedray.model.load import empty_backbone, load_backbone, load_config, load_pieces, load_processor
from fedray.offered import menu_of, refuse_attacks, refuse_heads, server_of, targets_of
from fedray.parts import held_pieces, refuse_another_models, refuse_unordered
from fedray.policy import Cohort, Pace, Policy, View
from fedray.policy_loading import LoadedPolicy, adapt_policy, load_policy
from fedray.presence import Presence, presence_of
from fedray.privacy import mechanism_of, refuse_beside_masks
from fedray.row_lengths import RowLengths
from fedray.salience import unit_order_of
from fedray.seeds import derive_seed
from fedray.selection import SelectedBy, load_selection, selected_by
from fedray.training.data import FILLER, TOKEN_MULTIPLE, Encoded, bucket, encode, longest_row
from fedray.training.footprint import FootprintTracer, TraceSubject
from fedray.training.link import refuse_codecs, refuse_seeds, without_idle_codecs
from fedray.training.optimizer import LocalOptimizer, schedule_scale
from fedray.training.own_weights import refuse_long_prompts, refuse_parts
from fedray.training.partitions import Partitions
from fedray.training.poisoned import Poisoning, poisoned
from fedray.training.shapes import masked_bytes
from fedray.training.task import Batch, Task, load_task
from fedray.training.variates import refuse_variates
from fedray.training.workshop import Blueprint, Stock, arrays_of
from fedray.virtual_server import VirtualServer
from fedray.width import UnitOrder


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Everything a round needs to know and nothing that a round changes.

    Attributes:
        anatomies: of the model on the meta device, by dtype.
        num_labels: of the classifier's head, 0 for a causal LM.
        weighs_rows: an update weighs its client's rows; otherwise all weigh alike.
        max_length: tokens of a row at most; of every row where they are images.
        aggregation_interval: rounds from one averaging of what lies below the cuts to the next.
        num_rows: that each client trains on, [clients].
        tokens: what its longest row is padded to, [clients]; memory is priced at that.
        num_tokens: real ones of all its rows, [clients].
        row_lengths: of them; time is priced at what they make the longest row of a batch.
        server: above the clients' cuts; None where none is asked for.
        presence: who is online when.
        batteries: of the clients, and who charges when; None where all are on mains.
        actual: what the clients' devices really are.
        privacy: what is done to every update; None where none is asked for.
        masked_bytes: of a masked update, the same from everybody; None without secure aggregation.
        poisoning: who attacks the model, and how; None where everybody is honest.
        leakage: of each cut what it gives away, where that is measured.
    """

    config: Config
    rows: datasets.Dataset
    task: Task
    encoded: Encoded
    partitions: Partitions
    fleet: Fleet
    model_config: PreTrainedConfig
    anatomies: Mapping[Dtype, Anatomy]
    num_labels: int
    menu: tuple[Assignment, ...]
    policy: Policy
    rule: Aggregation
    weighs_rows: bool
    aggregation_interval: int
    pace: Pace
    optimizer: LocalOptimizer
    max_length: int
    num_rows: Ints
    tokens: Ints
    num_tokens: Ints
    row_lengths: RowLengths
    tracer: FootprintTracer
    server: VirtualServer | None
    presence: Presence
    batteries: Batteries | None
    actual: Actual
    privacy: Mechanism | None
    masked_bytes: int | None
    poisoning: Poisoning | None
    leakage: Mapping[int, float]

    @property
    def num_clients(self) -> int:
        """Of the fleet: ids are 0 to one less."""
        return len(self.fleet)

    @property
    def anatomy(self) -> Anatomy:
        """Of any dtype: names and shapes are the same."""
        return next(iter(self.anatomies.values()))

    def footprint(self, assignment: Assignment, shape: WorkShape) -> Footprint:
        """What one step costs; traced once. Raises PolicyError for an assignment of another model."""
        refuse_another_models(self.anatomy.num_blocks, self.anatomies, assignment)
        refuse_unordered(self.config, assignment)
        traced = self.tracer(assignment, shape)
        return traced if self.masked_bytes is None else replace(traced, up_bytes=self.masked_bytes)

    def padding_bytes(
        self, given: Sequence[Assignment], tokens: Sequence[int], attention: Sequence[Attention]
    ) -> Ints:
        """Of masked updates those beyond the plain ones, [clients]; fewer than none where one header is less.

        Args:
            given: what each client does.
            tokens: what its longest row is padded to, [clients].
            attention: its kernel, [clients].
        """
        found = np.zeros(len(given), np.int64)
        if self.masked_bytes is None:
            return found
        for i, (one, padded, kernel) in enumerate(zip(given, tokens, attention, strict=True)):
            shape = WorkShape(rows=one.batch_size, tokens=padded, attention=kernel)
            found[i] = self.masked_bytes - self.tracer(one, shape).up_bytes
        return found

    def leaked(self, assignment: Assignment) -> float | None:
        """What its cut gives away; None for a whole model, and where nobody measured it."""
        return self.leakage.get(assignment.cut) if assignment.split else None

    def meta_batch(self, rows: int, tokens: int) -> Batch:
        """A batch of these shapes on the meta device."""
        return _meta_batch(self.encoded, rows, tokens)

    def evaluates(self, round_number: int) -> bool:
        """Whether the state is evaluated after a round; after the last it always is."""
        rounds = self.config.rounds
        return round_number % rounds.eval_rounds == 0 or round_number == rounds.num_rounds

    def averages(self, round_number: int) -> bool:
        """Whether what lies below the cuts is averaged after a round; after the last it always is."""
        return round_number % self.aggregation_interval == 0 or round_number == self.config.rounds.num_rounds

    def view(
        self, round_number: int, history: Sequence[Mapping[str, object]], at_seconds: float = 0.0
    ) -> View:
        """What a policy may know before it selects this round's clients, at a moment of the run."""

        def is_online(ids: Ints) -> NDArray[np.bool_]:
            if self.presence.sessions is not None:
                return self.presence.online(ids, at_seconds)
            return draw_online(self.config.seed, round_number, ids, self.fleet.availability(ids))

        return View(
            round=round_number,
            seed=derive_seed(self.config.seed, "selection", round_number),
            num_clients=self.num_clients,
            clients_per_round=self.config.rounds.clients_per_round,
            menu=self.menu,
            num_rows=self.num_rows,
            cohort_of=lambda ids: self.cohort(round_number, ids),
            is_online=is_online,
            may_be_asked=lambda ids: self.presence.online(ids, at_seconds),
            foretold=lambda ids, start, end: self.presence.stays(ids, at_seconds + start, at_seconds + end),
            may_ask_nobody=self.config.selection is not None and self.config.selection.name == "poisson",
            leakage=self.leakage,
            history=history,
        )

    def learning_rate_scale(self, round_number: int) -> float:
        """What the schedule makes of the learning rates in a round."""
        kind = self.config.training.lr_scheduler_type
        return schedule_scale(kind, round_number, self.config.rounds.num_rounds)

    def cohort(self, round_number: int, client_ids: Ints) -> Cohort:
        """These clients as a policy sees them."""
        return Cohort(
            round=round_number,
            seed=derive_seed(self.config.seed, "assignments", round_number),
            client_ids=client_ids,
            device_class=self.fleet.device_class(client_ids),
            device=self.fleet.device(client_ids),
            num_rows=self.num_rows[client_ids],
            num_tokens=self.num_tokens[client_ids],
            row_lengths=self.row_lengths[client_ids],
            tokens=self.tokens[client_ids],
            attention=self.fleet.attention(client_ids),
        )


def set_scene(config: Config, cache_dir: Path | None, policy: object | None = None) -> Scene:
    """Read, divide and encode the rows; draw the fleet; build the menu; load policy and rule.

    Args:
        config: checked already.
        cache_dir: where traced footprints are kept.
        policy: given in Python, in place of the one that the configuration names.

    Raises:
        FedrayError: one clear sentence for whatever of it is wrong; nothing is written.
    """
    if config.fleet.num_clients is not None:
        raise ConfigError(
            f"fleet.num_clients: {config.fleet.num_clients} is for fedray simulate; whoever trains holds "
            "rows, so a run's clients are those that the data are divided among. Drop it."
        )
    task = load_task(config.task.name, config.task.options)
    chosen = _chosen(config, policy)
    pace = agreed_pace(config, chosen)
    privacy = mechanism_of(config, chosen, pace)
    masks = refuse_beside_masks(config, chosen, pace)
    aggregation = choose_rule(config, chosen.aggregation, privacy)
    refuse_to_join(pace, aggregation.rule)
    model_config = load_config(config.model.name)
    unit_order = _unit_order(config, task, cache_dir)
    anatomies = {
        dtype: replace(dissect(empty_backbone(model_config, task.head, dtype)), unit_order=unit_order)
        for dtype in config.menu.dtypes
    }
    processor = load_processor(config.model.name)
    anatomy = next(iter(anatomies.values()))
    max_length = longest_row(anatomy, config.data.max_length)
    menu = menu_of(config, anatomy, train_a=aggregation.trains_a)
    refuse_codecs(aggregation.rule, menu)
    refuse_parts(aggregation.rule, anatomy, menu)
    refuse_long_prompts(anatomy, menu, max_length)
    refuse_heads(config, task)
    rows = rows_of(config)
    num_labels = task.labels(list(rows))
    refuse_attacks(config, anatomy, menu, num_labels)
    encoded = encode(task, rows, processor, max_length)
    partitions = partitions_of(config, rows, None)
    fleet = fleet_of(config, partitions.num_clients)
    if config.fleet.size_follows_memory:
        partitions = partitions_of(config, rows, fleet)
    encoded, poisoning = poisoned(config.attackers, config.seed, encoded, partitions, num_labels)
    optimizer = _optimizer(config, agreed_local_rules(config, chosen))
    refuse_seeds(optimizer, menu)
    if optimizer.control_variates:
        refuse_variates(aggregation.rule, menu)
    row_lengths = row_lengths_of(encoded, partitions, max_length)
    subject = TraceSubject(
        anatomies=anatomies,
        task=task,
        num_labels=num_labels,
        optimizer=optimizer,
        meta_batch=lambda count, tokens: _meta_batch(encoded, count, tokens),
        observables=chosen.observables,
        clips_as_one=config.server.mode == "replica",
        server_attention=config.server.attention,
        server_recompute=config.server.recompute,
    )
    return Scene(
        config=config,
        rows=rows,
        task=task,
        encoded=encoded,
        partitions=partitions,
        fleet=fleet,
        model_config=model_config,
        anatomies=anatomies,
        num_labels=num_labels,
        menu=without_idle_codecs(menu, anatomy, num_labels),
        policy=chosen,
        rule=aggregation.rule,
        weighs_rows=aggregation.weighs_rows,
        aggregation_interval=agreed_interval(config, chosen, trains_a=aggregation.trains_a),
        pace=pace,
        optimizer=optimizer,
        max_length=max_length,
        num_rows=partitions.num_rows,
        tokens=row_lengths.longest,
        num_tokens=np.array([int(encoded.lengths[own].sum()) for own in partitions.train], np.int64),
        row_lengths=row_lengths,
        server=server_of(config, anatomies),
        presence=presence_of(config, fleet, partitions.num_clients),
        batteries=batteries_of(config, fleet, partitions.num_clients),
        actual=actual_of(config, partitions.num_clients),
        privacy=privacy,
        poisoning=poisoning,
        leakage=leakage_of(config, task, encoded, cache_dir),
        masked_bytes=masked_bytes(anatomy, menu, num_labels) if masks else None,
        tracer=FootprintTracer(subject, cache_dir),
    )


def _unit_order(config: Config, task: Task, cache_dir: Path | None) -> Callable[[], UnitOrder] | None:
    """Measures the order of the model's units when it is first asked for, which a plan never does."""
    if config.menu.width_window != "salient":
        return None
    return cache(partial(unit_order_of, config.model.name, task.head, cache_dir))


def row_lengths_of(encoded: Encoded, partitions: Partitions, max_length: int) -> RowLengths:
    """How long the clients' training rows are, each padded alone."""
    alone = [bucket(length, TOKEN_MULTIPLE, max_length) for length in encoded.lengths.tolist()]
    lengths = np.array(alone, np.int64)
    return RowLengths.of([lengths[own] for own in partitions.train])


def furnish(scene: Scene, device: str) -> tuple[Blueprint, Stock, PreTrainedModel]:
    """The weights, and what every process needs to train with them. Raises ModelError."""
    config = scene.config
    models = {dtype: _loaded(scene, dtype) for dtype in scene.anatomies}
    unit_order = scene.anatomy.unit_order
    blueprint = Blueprint(
        config=scene.model_config,
        targets=targets_of(config, scene.anatomy),
        task=scene.task,
        optimizer=scene.optimizer,
        max_length=scene.max_length,
        tokens_per_wave=config.packs.tokens_per_wave,
        threads=config.packs.threads_per_pack,
        device=device,
        unit_order=None if unit_order is None else unit_order(),
    )
    stock = Stock(
        weights={dtype: arrays_of(model) for dtype, model in models.items()},
        rows=scene.encoded,
        partitions=scene.partitions.train,
    )
    return blueprint, stock, next(iter(models.values()))


def _loaded(scene: Scene, dtype: Dtype) -> PreTrainedModel:
    """All weights, or those alone that processes beside the server's hold."""
    config = scene.config
    pieces = held_pieces(config, scene.anatomy.num_blocks)
    if pieces is None or config.runtime == "local":  # where the server is in this process, too
        return load_backbone(config.model.name, scene.task.head, dtype)[0]
    return load_pieces(config.model.name, scene.task.head, dtype, pieces)


def _chosen(config: Config, policy: object | None) -> LoadedPolicy | SelectedBy:
    """The policy, with the selection's choice of clients if one is named. Raises PolicyError, ConfigError."""
    named, selection = config.policy, config.selection
    loaded = load_policy(named.name, named.options) if policy is None else adapt_policy(policy)
    chosen = (
        loaded
        if selection is None
        else selected_by(load_selection(selection.name, selection.options), loaded)
    )
    if "squared_loss" in chosen.observables and config.menu.cuts:
        raise ConfigError(
            f"{chosen.name!r} asks clients for squared_loss, and above a cut no client knows the losses of "
            "its rows; drop menu.cuts, or choose another selection."
        )
    return chosen


def _optimizer(config: Config, local_rules: Mapping[str, float]) -> LocalOptimizer:
    section = {**config.training.model_dump(), **local_rules}
    for name in ("tail_gamma", "exit_ramp_rounds"):
        section[name] = section[name] or getattr(LocalOptimizer(), name)
    return LocalOptimizer(**{name: section[name] for name in LocalOptimizer.__slots__})


def _meta_batch(encoded: Encoded, count: int, tokens: int) -> Batch:
    batch = encoded.batch(np.full(count, FILLER), tokens)
    return {name: tensor.to(torch.device("meta")) for name, tensor in batch.items()}
