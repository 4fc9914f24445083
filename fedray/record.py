"""What was measured: a row per round and a row per client-round, and the Arrow schemas they leave."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import pyarrow as pa

Outcome = Literal["ok", "late", "dropped", "oom", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRecord:
    """One client in one round. Virtual seconds are the declared device's, wall seconds are ours.

    ``measured_peak_bytes`` is null where no audit ran; it is never filled from the prediction.
    ``up_bytes`` and ``down_bytes`` were counted from the tensors; ``predicted_*`` came from the footprint.
    ``statistics`` are the values of the policy's observables (`fedray.observable.statistics_from_json`).

    ``joules`` are declared: the clock's seconds and bytes times the watts and joules a byte of the profile,
    which nobody measured.

    ``cut`` counts the leading blocks that the client kept while a server ran the others; null for a whole
    model. ``boundary_*`` are bytes over the cut in all steps, counted and predicted, beside the update's
    own; ``num_messages`` went over it both ways. ``waiting_seconds`` are those of the virtual seconds that
    the client waited for the server; ``receive_seconds`` those until everything had reached it,
    ``compute_seconds`` of its own arithmetic and ``send_seconds`` of sending the update. With a cut the rest
    is what crossing it took. ``lost_share`` is the length of what a codec changed of the update over its own;
    null where it goes plain, or crosses a cut.

    ``num_steps`` are those that the client set out to do: fewer than its assignment says where a deadline
    takes partial work. ``predicted_seconds`` are the virtual seconds of a whole trip at the rates that the
    client declares, with a server that nobody else rides and a link of it that nobody else is on. Where
    rounds overlap, ``round`` is the one that the update landed in; ``start_seconds`` are virtual, from the
    run's start until the client was asked; and ``staleness`` counts the versions of the state after the one
    it was sent. ``padding_bytes`` are those of the sent ones that a masked update has beyond the plain one of
    the same assignment. ``held_blocks`` are those of the frozen model that have reached the client so far,
    whole or in part, at any dtype (``0-2, 5``), and ``held_share`` is the share of the model's bytes that
    they are with its stem and head, if it has these: who was sent a block can keep it. ``charge_joules`` were
    in the client's battery as it was asked; null on mains. ``attack`` names what an attacker did, and is
    shown to no policy. ``cut_epsilon`` is what noise on hidden states has used up so far of the privacy of
    one of the client's rows, replaced by another (`fedray.mechanism.CutNoise`); null without that noise.
    ``leakage`` is what the client's cut gives away, from 0 to 1 (`fedray.leakage`); null for a whole model,
    or where nobody measured it.
    """

    round: int
    client_id: int
    device_class: str
    assignment: str
    memory_bytes: int
    predicted_peak_bytes: int
    measured_peak_bytes: int | None
    predicted_up_bytes: int
    predicted_down_bytes: int
    up_bytes: int
    down_bytes: int
    provision_bytes: int
    num_rows: int
    num_steps: int
    virtual_seconds: float
    wall_seconds: float | None
    joules: float
    outcome: Outcome
    loss: float | None
    attempts: int
    message: str
    statistics: str = "{}"
    cut: int | None = None
    waiting_seconds: float = 0.0
    boundary_up_bytes: int = 0
    boundary_down_bytes: int = 0
    predicted_boundary_up_bytes: int = 0
    predicted_boundary_down_bytes: int = 0
    num_messages: int = 0
    predicted_seconds: float = 0.0
    start_seconds: float = 0.0
    staleness: int = 0
    padding_bytes: int = 0
    attack: str = ""
    receive_seconds: float = 0.0
    compute_seconds: float = 0.0
    send_seconds: float = 0.0
    lost_share: float | None = None
    held_blocks: str = ""
    held_share: float = 0.0
    charge_joules: float | None = None
    cut_epsilon: float | None = None
    leakage: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """One round. ``accuracy`` and ``loss`` are the evaluation's after it; null where none ran.

    ``up_bytes`` are the updates', ``down_bytes`` what clients started from; ``boundary_*`` went over cuts.
    ``waiting_seconds`` is the sum over clients, ``joules`` theirs too; ``server_joules`` the server's;
    both by declared watts. ``disagreement`` of the updates that counted: 0 where all are the same, 1 where
    they have nothing in common (`fedray.aggregation.disagreement`); null of fewer than two, and under rules
    whose clients train unlike factors. ``sampling_rate`` is the chance of a client to be asked in the round;
    ``epsilon`` what of the privacy of a client has been used up since the first round, at the configuration's
    delta. Both are null without noise. ``attack_success`` is the share of test rows of other classes that are
    said to be a backdoor's once they have its trigger; null where none is tried. ``membership_auc`` is how
    well losses tell rows of clients that have trained from rows held out, 0.5 for guessing, and
    ``membership_found`` the share of the first that are named at one false in a hundred; null where that is
    not tried. ``membership_ratio_auc`` and ``membership_ratio_found`` are the same by likelihood ratio; null
    without shadows, or where too many of them came to losses that are no numbers. Of some of the round's
    updates, as the server has them, ``words_found`` is the share of the words that their clients trained on
    and ``words_floor`` what always saying the commonest word finds; or
    ``images_psnr`` in dB how near images come, and ``images_floor`` how near the mean image does.
    ``labels_found`` is the share of rows whose labels are told, and ``labels_floor`` what always saying the
    commonest of them tells; null where that is not tried, or nobody's update counted. ``plain_accuracy`` and
    ``plain_loss`` are of the state that the round's updates would have made as they were before coding; null
    where ``audit.codecs`` does not ask. ``cut_epsilon`` is the largest that the round's clients, or anybody
    before them, have come to at their cuts.
    """

    round: int
    accuracy: float | None
    loss: float | None
    virtual_seconds: float
    wall_seconds: float
    up_bytes: int
    down_bytes: int
    joules: float
    num_ok: int
    num_late: int
    num_dropped: int
    num_oom: int
    num_failed: int
    drift: float
    waiting_seconds: float = 0.0
    boundary_up_bytes: int = 0
    boundary_down_bytes: int = 0
    server_joules: float = 0.0
    sampling_rate: float | None = None
    epsilon: float | None = None
    attack_success: float | None = None
    disagreement: float | None = None
    membership_auc: float | None = None
    membership_found: float | None = None
    membership_ratio_auc: float | None = None
    membership_ratio_found: float | None = None
    plain_accuracy: float | None = None
    plain_loss: float | None = None
    words_found: float | None = None
    words_floor: float | None = None
    images_psnr: float | None = None
    images_floor: float | None = None
    labels_found: float | None = None
    labels_floor: float | None = None
    cut_epsilon: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRecord:
    """The global state on some rows after a round. ``client_id`` is -1 where the rows belong to nobody.

    On the split ``backdoor``, test rows with a trigger, ``accuracy`` is how many are said to be its class.
    """

    round: int
    split: Literal["test", "validation", "unseen", "backdoor"]
    client_id: int
    device_class: str
    num_rows: int
    accuracy: float
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRecord:
    """One device class after a run: the model that its clients can hold by themselves, and what it is worth.

    ``num_holding`` of the class's ``num_clients`` hold some model without a server. ``assignment`` is one of
    those that have the class's model, and ``model`` says in words how it differs from the whole; both are
    empty where fewer than half of the clients hold any. ``accuracy`` and ``loss`` are on the rows of the
    run's own evaluations; null without a model or without such rows.
    """

    device_class: str
    num_clients: int
    num_holding: int
    assignment: str
    model: str
    accuracy: float | None
    loss: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRecord:
    """One device as it declares itself, of ``num_devices`` of the fleet, and which kinds of work fit it.

    ``flops_per_s`` is that of the menu's first dtype. ``fits_whole`` tells whether some offer that trains the
    whole model fits, ``fits_part`` one of a part of it alone (fewer blocks, narrower, few bits), ``fits_cut``
    one under a cut.
    """

    num_devices: int
    client_id: int
    device_class: str
    memory_bytes: int
    flops_per_s: float
    up_bps: float
    down_bps: float
    fits_whole: bool
    fits_part: bool
    fits_cut: bool


def summed(
    number: int, clients: Sequence[ClientRecord], *, virtual_seconds: float, wall_seconds: float
) -> RoundRecord:
    """What a round's clients come to together; what else was measured of it is for the caller to add."""
    outcomes = Counter(record.outcome for record in clients)
    return RoundRecord(
        round=number,
        accuracy=None,
        loss=None,
        virtual_seconds=virtual_seconds,
        wall_seconds=wall_seconds,
        up_bytes=sum(record.up_bytes for record in clients),
        down_bytes=sum(record.down_bytes + record.provision_bytes for record in clients),
        joules=sum(record.joules for record in clients),
        num_ok=outcomes["ok"],
        num_late=outcomes["late"],
        num_dropped=outcomes["dropped"],
        num_oom=outcomes["oom"],
        num_failed=outcomes["failed"],
        drift=0.0,
        waiting_seconds=sum(record.waiting_seconds for record in clients),
        boundary_up_bytes=sum(record.boundary_up_bytes for record in clients),
        boundary_down_bytes=sum(record.boundary_down_bytes for record in clients),
    )


_ARROW = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}


Record = ClientRecord | RoundRecord | EvaluationRecord | ClassRecord | DeviceRecord


def table(records: Sequence[Record], kind: type[Record]) -> pa.Table:
    """Rows as an Arrow table with ``kind``'s columns, also when there are none."""
    columns = schema(kind)
    return pa.table(
        {name: [getattr(record, name) for record in records] for name in columns.names}, schema=columns
    )


def schema(kind: type) -> pa.Schema:
    """The columns of a record kind: its fields, in order, nullable where the type admits None."""
    columns = []
    for name, annotation in kind.__annotations__.items():
        options = get_args(annotation) or (annotation,)
        plain = next((t for t in options if t in _ARROW), str)
        columns.append(pa.field(name, _ARROW[plain], nullable=type(None) in options))
    return pa.schema(columns)
