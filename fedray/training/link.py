"""What crosses a client's link at both ends of a round: what it starts from, and its update; each coded.

What a codec leaves out of an update (``topN``, ``rankN``) the client owes: it is added to its next update of
the same tensor (error feedback, 1809.07599, 1901.09847). So what was decoded and what is still owed always
sum to what was trained. A rank index is a place in a factor; a client that is given fewer ranks keeps owing
what lies beyond them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Size, Tensor, empty

from fedray.adapter import Adapter, from_tensors, leading
from fedray.aggregation.rule import Aggregation
from fedray.aggregation.secure_sum import as_masked, masked
from fedray.aggregation.transforms import noised, scaled_by
from fedray.assignment import Assignment, Lora
from fedray.codec_names import num_seeds
from fedray.errors import ConfigError
from fedray.model.anatomy import Anatomy
from fedray.model.slices import narrowed
from fedray.model.update_codecs import coded_layout, decode_tensors, encode_tensors, is_coded, leaves_out
from fedray.model.wire import wire_bytes
from fedray.seeds import derive_seed
from fedray.training.forward_only import went
from fedray.training.job import ClientState, Job, Update
from fedray.training.optimizer import LocalOptimizer
from fedray.training.own_side import OwnSide
from fedray.training.shapes import empty_adapter
from fedray.training.shares import client_share
from fedray.training.variates import on_the_wire

Way = Literal["up", "down"]
Tensors = Mapping[str, Tensor]

WAYS: tuple[Way, ...] = ("up", "down")
_OWED = "owed."
SEEDS = "seeds"
# Of the optimizer, where a step is the sum of slopes along directions.
_BY_SLOPES: Mapping[str, object] = {
    "optim": "sgd",
    "momentum": 0.0,
    "weight_decay": 0.0,
    "max_grad_norm": None,
    "head_learning_rate": None,
    "proximal_mu": 0.0,
    "tail_penalty": 0.0,
    "control_variates": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SentUp:
    """What a client's work in a round ends with.

    Attributes:
        coded: its own share of the update, as it crosses.
        client_state: what it keeps from now on, all of it.
        lost: the length of what the codec changed over that of what was due; None where nothing is coded.
    """

    coded: Tensors
    client_state: ClientState
    lost: float | None = None


def sent_down(anatomy: Anatomy, job: Job) -> Job:
    """The job with what its client receives in place of what a rule sends, and the bytes that brought it."""
    own = client_share(anatomy, job.assignment, job.sent).tensors()
    codec = codec_of(job.assignment, "down")
    crossed = encode_tensors(own, codec, _seeds(job, "down"))
    received = job.sent.tensors() | decode_tensors(crossed, own, codec)
    sent_bytes = wire_bytes({**crossed, **on_the_wire(job.variate)})
    return replace(job, sent=from_tensors(job.sent, received), sent_bytes=sent_bytes)


def sent_up(job: Job, own: Adapter) -> SentUp:
    """A client's own share of its delta, and what it owes of earlier ones, as they cross."""
    codec = codec_of(job.assignment, "up")
    owed = {n.removeprefix(_OWED): t for n, t in job.client_state.items() if n.startswith(_OWED)}
    told = _as_told(job, own).tensors()
    due = {name: _plus(delta, owed.get(name)) for name, delta in told.items()}
    coded = encode_tensors(due, codec, _seeds(job, "up"))
    changed: dict[str, Tensor] = {}
    if codec != "none":
        came = decode_tensors(coded, due, codec)
        changed = {name: t - came[name] for name, t in due.items() if is_coded(name, t, codec)}
    left = changed if leaves_out(codec) else {}
    still = {name: _still_owed(owed.get(name), left.get(name), t.shape) for name, t in due.items()}
    settled = {_OWED + name for name in due}
    kept = {name: tensor for name, tensor in job.client_state.items() if name not in settled}
    kept |= {_OWED + name: tensor for name, tensor in still.items() if tensor is not None}
    return SentUp(coded=coded, client_state=kept, lost=_relative(changed, due))


def arrived(job: Job, coded: Tensors) -> Adapter:
    """A client's own share of its update, as the server has it."""
    own = OwnSide.of(job.client_state)
    like = job.sent if own is None or job.keeps_own_side else own.begun
    if SEEDS in coded:
        return went(job, coded[SEEDS])
    decoded = decode_tensors(coded, like.tensors(), codec_of(job.assignment, "up"))
    return from_tensors(like, decoded, delta=True)


def on_its_way(job: Job, update: Update) -> Update:
    """A whole model's update as it travels: protected, coded, without its delta; a failed one as it is."""
    if update.delta is None:
        return update
    if update.told is not None:
        return replace(update, delta=None, told=None, coded={SEEDS: update.told * job.update_factor})
    delta = _protected(job, update.delta)
    if job.masking is not None:
        coded = masked(job.masking, job.client_id, _as_told(job, delta), job.weight)
        return replace(update, delta=None, coded=coded)
    sent = sent_up(replace(job, client_state=update.client_state), delta)
    plain = _as_told(job, delta) if job.keeps_plain else None
    return replace(
        update,
        delta=None,
        coded=sent.coded,
        plain=plain,
        client_state=sent.client_state,
        lost=sent.lost,
    )


def _protected(job: Job, delta: Adapter) -> Adapter:
    """With local privacy nothing of the update itself leaves the client, and what a codec owes is of this."""
    if job.privacy is None:
        return delta

    def seed_of(name: str) -> int:
        return derive_seed(job.seed, f"local noise of {name}", job.round, job.client_id, job.dispatch)

    return noised(delta, job.privacy, seed_of)


def _as_told(job: Job, delta: Adapter) -> Adapter:
    """What a client says it changed; an attacker keeps to no norm that it was asked to keep."""
    return delta if job.update_factor == 1 else scaled_by(delta, job.update_factor)


def as_received(job: Job, update: Update) -> Update:
    """An update that came, with its delta again, or what stands for it; one that failed as it is."""
    if update.coded is None:
        return update
    if job.masking is not None:
        return replace(update, delta=as_masked(job.client_id, update.coded))
    return replace(update, delta=arrived(job, update.coded))


def codec_of(assignment: Assignment, way: Way) -> str:
    """What one way's messages are coded with."""
    return assignment.up_codec if way == "up" else assignment.down_codec


def layout_of(own: Tensors, assignment: Assignment, way: Way) -> dict[str, Tensor]:
    """What crosses one way of a client's own share: shapes and dtypes, on the meta device.

    Raises:
        ConfigError: there are tensors, and a codec makes none of them shorter.
    """
    codec = codec_of(assignment, way)
    shared = num_seeds(codec)
    if shared is not None:
        return {SEEDS: empty(shared, device="meta")}
    if own and codec != "none" and not _changes(own, codec):
        raise ConfigError(
            f"{way}_codec {codec} has no effect on {assignment}: none of the {len(own)} tensors it sends "
            "gets shorter; choose another, or none."
        )
    return coded_layout(own, codec)


def owed_like(own: Tensors, assignment: Assignment) -> list[Tensor]:
    """Tensors of the shapes that a client owes after an update, if it owed nothing else before."""
    codec = codec_of(assignment, "up")
    if num_seeds(codec) is not None:
        return []
    return [t for name, t in own.items() if leaves_out(codec) and is_coded(name, t, codec)]


def without_idle_codecs(
    menu: Sequence[Assignment], anatomy: Anatomy, num_labels: int
) -> tuple[Assignment, ...]:
    """The menu with codecs only where they make a message shorter; entries that become equal are one.

    Raises:
        ConfigError: for a codec that does so for no entry.
    """
    kept = []
    for entry in menu:
        asked = {f"{way}_codec": codec for way in WAYS if (codec := codec_of(entry, way)) != "none"}
        if asked:
            empty = empty_adapter(narrowed(anatomy, entry.width), entry, num_labels, "meta")
            own = client_share(anatomy, entry, empty).tensors()
            entry = replace(entry, **{n: "none" for n, codec in asked.items() if not _changes(own, codec)})  # type: ignore[arg-type]
        kept.append(entry)
    for way in WAYS:
        idle = {codec_of(entry, way) for entry in menu} - {codec_of(entry, way) for entry in kept}
        if idle:
            raise ConfigError(
                f"menu.{way}_codecs lists {min(idle)}, and it makes no tensor shorter that any client sends "
                "or is sent; choose another, or drop it."
            )
    return tuple(dict.fromkeys(kept))


def refuse_codecs(rule: Aggregation, assignments: Iterable[Assignment]) -> None:
    """Raises ConfigError for codecs under which a rule would not do what it says."""
    for assignment in assignments:
        up, down = (codec_of(assignment, way) for way in WAYS)
        up = "none" if num_seeds(up) is not None else up
        if down != "none" and rule.averages_states:
            raise ConfigError(
                f"down_codec {down} changes what clients start from, and aggregation {rule.name!r} averages "
                "what they end with, so untrained clients would move the state; average changes "
                f"(aggregation: {{name: {rule.name}, options: {{form: delta}}}}), or choose down_codec none."
            )
        if leaves_out(up) and isinstance(assignment.adapter, Lora) and not rule.keeps_rank_indices:
            raise ConfigError(
                f"What up_codec {up} leaves out of factors joins the next round's, and aggregation "
                f"{rule.name!r} gives clients other factors then; choose factor_mean, or up_codec int8, int4 "
                "or bf16."
            )


def refuse_seeds(optimizer: LocalOptimizer, assignments: Iterable[Assignment]) -> None:
    """Raises ConfigError where steps are more than the sum of slopes along directions."""
    asked = next((a.up_codec for a in assignments if num_seeds(a.up_codec) is not None), None)
    beside = [name for name, plain in _BY_SLOPES.items() if getattr(optimizer, name) != plain]
    if asked is not None and beside:
        raise ConfigError(
            f"up_codec {asked} tells an update by sums of slopes, and training.{beside[0]} = "
            f"{getattr(optimizer, beside[0])} makes another step of them; set training.optim: sgd and "
            "max_grad_norm: null, without momentum, weight_decay, head_learning_rate or local rules."
        )


def _changes(own: Tensors, codec: str) -> bool:
    shared = num_seeds(codec)
    if shared is not None:
        return wire_bytes({SEEDS: empty(shared, device="meta")}) < wire_bytes(dict(own))
    return any(is_coded(name, tensor, codec) for name, tensor in own.items())


def _seeds(job: Job, way: Way) -> Callable[[str], int]:
    """A tensor's seed: of its run, round, client, direction and name, whoever codes it and when."""
    return lambda name: derive_seed(
        job.seed, f"codec {way} of {name}", job.round, job.client_id, job.dispatch
    )


def _relative(changed: Tensors, due: Tensors) -> float | None:
    """Of all tensors together; None where none is coded, or nothing was due."""
    whole, part = (sum(float(t.square().sum()) for t in tensors.values()) for tensors in (due, changed))
    return (part / whole) ** 0.5 if changed and whole else None


def _plus(delta: Tensor, owed: Tensor | None) -> Tensor:
    if owed is None:
        return delta
    both = tuple(map(min, delta.shape, owed.shape))
    total = delta.clone()
    leading(total, both).add_(leading(owed, both))
    return total


def _still_owed(before: Tensor | None, left: Tensor | None, reached: Size) -> Tensor | None:
    """What is left where an update reached, and elsewhere what was owed before; None for nothing."""
    if before is None or all(b <= r for b, r in zip(before.shape, reached, strict=True)):
        return left
    whole = before.new_zeros(tuple(map(max, before.shape, reached)))
    leading(whole, before.shape).copy_(before)
    part = leading(whole, reached)
    part.zero_() if left is None else part.copy_(left)
    return whole
