"""The round loop: select, price, decide, train, aggregate, record."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from accelerate import Accelerator

from fedray import checkpoint, rounds
from fedray.adapter import Adapter
from fedray.averaging import after_averaging
from fedray.config import Config, load_config
from fedray.environment import CACHE_DIR, open_runtime, run_folder
from fedray.errors import ConfigError
from fedray.evaluation import evaluate, headline
from fedray.fitting import devices_of
from fedray.held_models import held_models
from fedray.members import with_membership
from fedray.model.added import is_added
from fedray.model.anatomy import dissect
from fedray.model.export import save_adapter
from fedray.model.export_added import save_added
from fedray.model.whole_model import save_model
from fedray.overheard import ear_for, with_overheard
from fedray.overlapping import play_overlapping
from fedray.policy import State
from fedray.policy_loading import name_in_python
from fedray.privacy import highest_cut_epsilon, sampling_rate, with_cut_epsilon, with_epsilon
from fedray.progress import Progress, begun, history_of
from fedray.readiness import Readiness, view_of
from fedray.record import ClassRecord, ClientRecord, EvaluationRecord, RoundRecord, summed
from fedray.report import write_report
from fedray.rounds import Runtime, Trained
from fedray.scene import Scene, furnish, set_scene
from fedray.scheduler import ask_menu, ask_selection, decide, price_menu, refuse_if_nothing_fits
from fedray.tapped import TappedRuntime
from fedray.told import told_by_the_clock, told_by_training
from fedray.tracking import Tracker, refuse_absent_trackers
from fedray.training.own_weights import initial_weights
from fedray.training.shapes import initial_adapter
from fedray.training.tap import Tap
from fedray.watched import Watch, WatchedRuntime

Show = Callable[[RoundRecord], None]
# Clients priced at once while one is sought that something fits; mostly the first ones are.
_FEW = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a run came to; everything else lies in its folder. No ``report`` where none was asked for."""

    out: Path
    adapter: Adapter
    rounds: tuple[RoundRecord, ...]
    clients: tuple[ClientRecord, ...]
    evaluations: tuple[EvaluationRecord, ...]
    classes: tuple[ClassRecord, ...]
    report: Path | None


def run(
    config: Config,
    out: Path,
    show: Show | None = None,
    policy: object | None = None,
    watch: Watch | None = None,
    taps: Sequence[Tap] = (),
) -> RunResult:
    """Train from the first round. Raises FedrayError; nothing is written before the configuration holds.

    Args:
        config: checked already.
        out: the folder to leave everything in.
        show: called with each round's record.
        policy: given in Python; the configuration then has its `name_in_python`.
        watch: called while a round goes on.
        taps: look on at updates and at what crosses cuts.
    """
    scene = _scene(config, policy)
    adapter = initial_adapter(scene.anatomy, scene.menu, scene.num_labels, config.seed)
    progress = begun(scene.num_clients, adapter, preinstalled=config.provision == "preinstalled")
    return _continued(scene, progress, out, show, watch, taps)


def resume(
    out: Path,
    show: Show | None = None,
    policy: object | None = None,
    watch: Watch | None = None,
    taps: Sequence[Tap] = (),
) -> RunResult:
    """Train on from the newest checkpoint, to what an unbroken run gives; the rest is as in `run`."""
    config = load_config(out / "config.yaml")
    if policy is not None and name_in_python(policy) != config.policy.name:
        raise ConfigError(
            f"{out} was begun with the policy {config.policy.name!r}, not with {name_in_python(policy)!r}; "
            "give that one again, or none if it is in a file."
        )
    progress = checkpoint.load(out)
    if progress is None:
        return run(config, out, show, policy, watch, taps)
    if progress.finished_rounds > config.rounds.num_rounds:
        raise ConfigError(
            f"{out} has {progress.finished_rounds} finished rounds and its config.yaml asks for "
            f"{config.rounds.num_rounds}; raise rounds.num_rounds."
        )
    return _continued(_scene(config, policy), progress, out, show, watch, taps)


def _scene(config: Config, policy: object | None) -> Scene:
    refuse_absent_trackers(config.report_to)
    return set_scene(config, CACHE_DIR, policy)


def _continued(
    scene: Scene, progress: Progress, out: Path, show: Show | None, watch: Watch | None, taps: Sequence[Tap]
) -> RunResult:
    config = scene.config
    _refuse_a_fleet_that_nothing_fits(scene, progress)
    accelerator = Accelerator(log_with=list(config.report_to) or None, project_dir=str(out))
    threads = torch.get_num_threads()
    blueprint, stock, model = furnish(scene, accelerator.device.type)
    if not progress.state.version:
        weights = initial_weights(dissect(model), scene.menu, config.seed)
        start = replace(progress.state.adapter, weights=weights)
        progress.state = replace(progress.state, adapter=start)
    opened = open_runtime(scene, blueprint, stock, model)
    runtime = TappedRuntime(opened, taps) if taps else opened
    try:
        with (
            run_folder(out, config, blueprint.device, blueprint.threads),
            closing(Tracker(accelerator, config)) as tracker,
        ):
            checkpoint.write_devices(out, devices_of(scene))
            for number in range(progress.finished_rounds + 1, config.rounds.num_rounds + 1):
                watched = runtime if watch is None else WatchedRuntime(runtime, number, watch)
                record = play_round(scene, progress, watched, number)
                checkpoint.save(out, progress)
                tracker.log(record)
                if show is not None:
                    show(record)
            classes = held_models(scene, progress, runtime)
            checkpoint.write_classes(out, classes)
    finally:
        runtime.close()
        torch.set_num_threads(threads)
    adapter = progress.state.adapter
    base_name = config.model.name
    own = {name: tensor for name, tensor in adapter.weights.items() if not is_added(name)}
    if own:
        save_model(own, out / "model", model, base_name)
        base_name = str(out / "model")
    save_added(adapter.weights, out, model=model, base_name=base_name)
    save_adapter(
        adapter, out / "adapter", model=model, base_name=base_name, base_delta=progress.state.base_delta
    )
    return RunResult(
        out=out,
        adapter=progress.state.adapter,
        rounds=tuple(progress.rounds),
        clients=tuple(progress.clients),
        evaluations=tuple(progress.evaluations),
        classes=tuple(classes),
        report=write_report(out) if config.report else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Played:
    """A round before it is evaluated and recorded; ``policy_state`` before the policy learns from it."""

    trained: Trained
    clients: list[ClientRecord]
    policy_state: State
    virtual_seconds: float
    drift: float = 0.0
    server_joules: float = 0.0
    sampling_rate: float | None = None


def play_round(scene: Scene, progress: Progress, runtime: Runtime, number: int) -> RoundRecord:
    """One round, from the selection to its records; what it came to is in ``progress``."""
    started, config = perf_counter(), scene.config
    due = scene.evaluates(number)
    ear = ear_for(scene, number) if due else None
    play = _overlapping if scene.pace.joins else _in_step
    played = play(scene, progress, runtime if ear is None else TappedRuntime(runtime, [ear]), number)
    clients = with_cut_epsilon(config, scene.tokens, progress.clients, played.clients)
    trained = played.trained
    evaluations = evaluate(scene, trained.state, number, runtime) if due else []
    plain = [] if trained.plain is None else evaluate(scene, trained.plain, number, runtime)
    progress.state = trained.state
    progress.remember(trained.client_states)
    if scene.averages(number):
        progress.remember(after_averaging(progress))
    progress.clients += clients
    progress.evaluations += evaluations
    progress.policy_state = scene.policy.observe(history_of(clients), played.policy_state)
    record = _summed(number, replace(played, clients=clients), evaluations, perf_counter() - started)
    plain_accuracy, plain_loss = headline(plain)
    record = replace(
        record,
        plain_accuracy=plain_accuracy,
        plain_loss=plain_loss,
        cut_epsilon=highest_cut_epsilon(progress.rounds, clients),
    )
    record = with_epsilon(scene.privacy, record, progress.rounds, progress.clients)
    if due and config.attacks.membership:
        record = with_membership(scene, progress.state, record, progress.clients, runtime)
    if ear is not None:
        record = with_overheard(scene, record, ear, trained, runtime)
    progress.rounds.append(record)
    return record


def _in_step(scene: Scene, progress: Progress, runtime: Runtime, number: int) -> _Played:
    """A round whose clients set out together."""
    pricing = rounds.pricing_of(scene, progress, number)
    ready = Readiness(scene=scene, number=number, charges=progress.charges, pricing=pricing)
    opens = ready.begins(progress.elapsed_seconds)
    view = view_of(ready, progress.history(), opens)
    menu = ask_menu(scene.policy, view)
    view = replace(view, offers_of=lambda ids: price_menu(menu, ready.cohort(ids, opens), pricing))
    chosen, policy_state = ask_selection(scene.policy, view, progress.policy_state)
    begins, present = ready.asked(chosen, opens)
    cohort = ready.cohort(present, begins)
    offers = price_menu(menu, cohort, pricing)
    schedule = decide(scene.policy, cohort, offers, policy_state, pricing)
    asked = rounds.ask(scene, progress, cohort, schedule, begins)
    measured = rounds.audit_clients(scene, progress, asked, runtime)
    asked = rounds.cut_short(scene, progress, asked)
    closed = rounds.close(scene, progress, asked)
    drift = rounds.drift_of(scene, progress, asked)
    trained = rounds.train(scene, progress.state, rounds.counted(asked, closed), runtime)
    told = told_by_the_clock(scene, progress, asked, closed, measured)
    return _Played(
        trained=trained,
        clients=[told_by_training(record, trained) for record in told],
        policy_state=schedule.state,
        virtual_seconds=begins - progress.elapsed_seconds + closed.virtual_seconds,
        drift=drift,
        server_joules=closed.server_joules,
        sampling_rate=sampling_rate(scene.privacy, view),
    )


def _overlapping(scene: Scene, progress: Progress, runtime: Runtime, number: int) -> _Played:
    """A round that closes while others are on their way."""
    landed = play_overlapping(scene, progress, runtime, number)
    return _Played(
        trained=landed.trained,
        clients=landed.clients,
        policy_state=progress.policy_state,
        virtual_seconds=landed.virtual_seconds,
        server_joules=landed.server_joules,
    )


def _refuse_a_fleet_that_nothing_fits(scene: Scene, progress: Progress) -> None:
    """Look for one client that something fits, those with most memory first. Raises NothingFits."""
    number = progress.finished_rounds + 1
    menu = ask_menu(scene.policy, scene.view(number, progress.history()))
    pricing = rounds.pricing_of(scene, progress, number)
    everybody = np.arange(scene.num_clients)
    richest = everybody[np.argsort(-scene.fleet.device(everybody).memory_bytes, kind="stable")]
    for start in range(0, len(richest), _FEW):
        if price_menu(menu, scene.cohort(number, richest[start : start + _FEW]), pricing).fits.any():
            return
    cohort = scene.cohort(number, everybody)
    refuse_if_nothing_fits(cohort, price_menu(menu, cohort, pricing))


def _summed(
    number: int, played: _Played, evaluations: list[EvaluationRecord], wall_seconds: float
) -> RoundRecord:
    accuracy, loss = headline(evaluations)
    seconds = played.virtual_seconds
    return replace(
        summed(number, played.clients, virtual_seconds=seconds, wall_seconds=wall_seconds),
        accuracy=accuracy,
        loss=loss,
        drift=played.drift,
        server_joules=played.server_joules,
        sampling_rate=played.sampling_rate,
        attack_success=next((e.accuracy for e in evaluations if e.split == "backdoor"), None),
        disagreement=played.trained.disagreement,
    )
