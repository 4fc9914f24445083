"""What any federation is measured against: every client alone, and all rows in one place.

Both train as clients of a run do, on whole models, with its optimizer, schedule and draws.

``local_only``: each client trains the largest assignment that fits it on its own rows, in as many rounds as a
client of the run is asked in on average (at least one), and nothing is averaged. Frozen weights reach it,
nothing else moves; it is evaluated on its own test rows, or on all of them where these belong to nobody. A
client that nothing fits keeps what everybody starts from.

``centralised``: the rows of all clients are brought to one of the devices, that which holds the largest
assignment and of these the quickest; in every round it takes as many steps, one after the other, as all
clients of a round do together on average. Rows cost 4 bytes a token on the owners' and the device's links, in
the first round.

Neither is tuned, and neither is part of a budget or a target. Their devices are on mains.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from fedray import checkpoint
from fedray.assignment import Assignment
from fedray.comparison.alone import Learners, learn_alone
from fedray.comparison.entrants import Yardstick
from fedray.config import Config
from fedray.environment import CACHE_DIR, run_folder
from fedray.errors import ConfigError
from fedray.holdings import Holdings
from fedray.model.anatomy import dissect
from fedray.policy import Cohort, Offers
from fedray.policy_loading import adapt_policy
from fedray.progress import begun
from fedray.report import write_report
from fedray.runtime.local import LocalRuntime
from fedray.scene import Scene, furnish, row_lengths_of, set_scene
from fedray.scheduler import Pricing, decide, price_menu
from fedray.training.own_weights import initial_weights
from fedray.training.shapes import initial_adapter

BYTES_A_TOKEN = 4


def can_stand(config: Config) -> bool:
    """Whether the menu has whole models, sent as they are, and somebody holds one to evaluate with."""
    menu = config.menu
    plain = menu.whole and max(menu.widths) == 1 and "none" in menu.up_codecs and "none" in menu.down_codecs
    return plain and (not menu.cuts or config.server.evaluation == "whole")


def play_yardstick(kind: Yardstick, config: Config, out: Path) -> None:
    """Leave a run's records and report in a folder. Raises FedrayError.

    Args:
        kind: which.
        config: of a run beside it.
        out: the folder.
    """
    scene = _scene(config)
    learners = _everybody(scene) if kind == "local_only" else _pooled(scene)
    blueprint, stock, model = furnish(learners.scene, "cpu")
    adapter = initial_adapter(scene.anatomy, scene.menu, scene.num_labels, config.seed)
    adapter = replace(adapter, weights=initial_weights(dissect(model), scene.menu, config.seed))
    progress = begun(scene.num_clients, adapter, preinstalled=config.provision == "preinstalled")
    runtime = LocalRuntime(blueprint, stock)
    try:
        with run_folder(out, config, blueprint.device, blueprint.threads):
            learn_alone(learners, progress, runtime)
            checkpoint.write_records(out, progress.rounds, progress.clients, progress.evaluations)
    finally:
        runtime.close()
    if config.report:
        write_report(out)


class LargestOnce:
    """Gives every client the largest assignment that fits it, and the same in every round."""

    def __init__(self) -> None:
        self._given: dict[int, Assignment | None] = {}

    def assign(self, cohort: Cohort, offers: Offers) -> list[Assignment | None]:
        """What it was given before, or the largest sum of ranks; of equals what is done first."""
        sizes = offers.sum_of_ranks + np.array([entry.num_trained_blocks for entry in offers.menu]) / 1e6
        for client, place in zip(cohort.client_ids.tolist(), offers.best(sizes).tolist(), strict=True):
            self._given.setdefault(client, None if place < 0 else offers.menu[place])
        return [self._given[client] for client in cohort.client_ids.tolist()]


def _scene(config: Config) -> Scene:
    """Of a run, with whole models alone on the menu and no server."""
    scene = set_scene(config, CACHE_DIR)
    plain = [
        entry
        for entry in scene.menu
        if not (entry.split or entry.is_submodel or entry.width)
        and entry.up_codec == entry.down_codec == "none"
    ]
    if not plain:
        raise ConfigError("local_only and centralised train whole models, and the menu has none.")
    return replace(scene, menu=tuple(plain), policy=adapt_policy(LargestOnce()), server=None, batteries=None)


def _everybody(scene: Scene) -> Learners:
    section = scene.config.rounds
    average = section.num_rounds * min(section.clients_per_round, scene.num_clients) / scene.num_clients
    return Learners(scene=scene, ids=np.arange(scene.num_clients), num_rounds=max(1, round(average)))


def _pooled(scene: Scene) -> Learners:
    """One device with all rows, its steps those of a round's clients together."""
    parts, rounds = scene.partitions, scene.config.rounds
    best, mean_steps = _best_device(scene)
    steps = max(1, round(mean_steps * min(rounds.clients_per_round, scene.num_clients)))
    pooled = np.sort(np.concatenate(parts.train))
    train = tuple(pooled if client == best else own for client, own in enumerate(parts.train))
    parts = replace(parts, train=train)
    row_lengths = row_lengths_of(scene.encoded, parts, scene.max_length)
    num_tokens = scene.num_tokens.copy()
    num_tokens[best] = scene.num_tokens.sum()
    everybody = np.arange(scene.num_clients)
    device, sent = scene.fleet.device(everybody), BYTES_A_TOKEN * scene.num_tokens
    sent = np.where(everybody == best, 0, sent)
    longest = max(float((sent * 8 / device.up_bps).max()), float(sent.sum() * 8 / device.down_bps[best]))
    alone = replace(
        scene,
        partitions=parts,
        menu=tuple(replace(entry, max_steps=steps) for entry in scene.menu),
        num_rows=parts.num_rows,
        tokens=row_lengths.longest,
        num_tokens=num_tokens,
        row_lengths=row_lengths,
    )
    return Learners(
        scene=alone,
        ids=np.array([best]),
        num_rounds=rounds.num_rounds,
        shares_model=True,
        pooled_bytes=int(sent.sum()),
        pooled_seconds=longest,
    )


def _best_device(scene: Scene) -> tuple[int, float]:
    """Which client holds the largest assignment, of equals the quickest; and steps of a client on average."""
    cohort = scene.cohort(1, np.arange(scene.num_clients))
    pricing = Pricing(footprint_of=scene.footprint, holdings=Holdings(scene.num_clients))
    offers = price_menu(scene.menu, cohort, pricing)
    schedule = decide(adapt_policy(LargestOnce()), cohort, offers, {}, pricing)
    given, terms = schedule.decision.assignments, schedule.terms
    sizes = {i: entry.sum_of_ranks for i, entry in enumerate(given) if entry is not None}
    if not sizes:
        raise ConfigError("No device holds a whole model in training, so none can be trained centrally.")
    seconds = terms.compute_seconds / np.maximum(terms.num_steps, 1)
    best = min(sizes, key=lambda i: (-sizes[i], seconds[i]))
    return best, float(terms.num_steps[list(sizes)].mean())
