"""What reached the model: by how much of the clients' weight each block was trained, and what codecs took."""

from collections import defaultdict
from collections.abc import Sequence
from functools import cache

import numpy as np

from fedray.assignment import Assignment
from fedray.cost import Floats
from fedray.record import ClientRecord, RoundRecord
from fedray.report.markup import Cell, Shaded, html_table, paragraph
from fedray.report.tallies import with_and_without_codecs
from fedray.trained import Prompt

# A block that less than this share of the clients' weight trains learns from few.
FEW = 0.1


def coverage_of(clients: Sequence[ClientRecord]) -> Floats:
    """Of each block the share of the clients' weight that trained it, [blocks]; empty without any update.

    Weight is rows, of the client-rounds whose update counted. Blocks that a server trains for a client
    under a cut are trained, too. Where clients hold some blocks alone, the highest that anybody had is
    the last one known.
    """
    counted = [record for record in clients if record.outcome == "ok"]
    trained_by = cache(_trained_blocks)
    weight: dict[int, int] = defaultdict(int)
    for record in counted:
        for block in trained_by(record.assignment)[0]:
            weight[block] += record.num_rows
    num_blocks = max((trained_by(record.assignment)[1] for record in counted), default=0)
    total = sum(record.num_rows for record in counted)
    return np.array([weight[block] / total for block in range(num_blocks)]) if total else np.zeros(0)


def _trained_blocks(text: str) -> tuple[tuple[int, ...], int]:
    """The blocks that an assignment trains, and how many blocks it shows that there are."""
    given = Assignment.from_json(text)
    last = max(given.blocks, default=-1) + 1
    if isinstance(given.adapter, Prompt):
        return (), last  # it lies before the first block
    # Under a cut there are ranks of the server's blocks, too.
    places = range(len(given.trained)) if given.split else given.blocks
    found = tuple(block for block, trained in zip(places, given.trained, strict=False) if trained)
    return found, max(last, len(given.trained) if given.split else 0)


def covered(clients: Sequence[ClientRecord]) -> str:
    """Coverage as HTML; nothing where no block was trained, and one line where all were alike."""
    shares = coverage_of(clients)
    if not shares.any():
        return ""
    head = "<h3>Which blocks were trained</h3>"
    if np.ptp(shares) == 0:
        return head + paragraph(f"Every block by {100 * shares[0]:.0f} % of the clients' weight.")
    rows: list[list[Cell]] = [
        [str(block), Shaded(text=f"{100 * share:.0f} %", share=float(share))]
        for block, share in enumerate(shares)
    ]
    return (
        head
        + html_table(("Block", "Share of the clients' weight that trained it"), rows)
        + paragraph("Weight is rows, summed over the client-rounds whose update counted.", quiet=True)
    )


def trained_by_few(clients: Sequence[ClientRecord]) -> str:
    """A sentence on blocks that few train while most train others; nothing where there are none."""
    shares = coverage_of(clients)
    few = np.flatnonzero((shares > 0) & (shares < FEW))
    if not len(few) or shares.max() < 0.5:
        return ""
    which = ", ".join(map(str, few.tolist()))
    return (
        f"Trained by few: block{'s' if len(few) > 1 else ''} {which} by at most "
        f"{100 * shares[few].max():.0f} % of the clients' weight, others by up to "
        f"{100 * shares.max():.0f} %. What such blocks learn is of few clients; a cut, or submodels of other "
        "blocks (fedra), let others train them."
    )


def lost_by_codec(rounds: Sequence[RoundRecord], clients: Sequence[ClientRecord]) -> str:
    """What each codec changed of the updates, as HTML; nothing where all went plain."""
    by_codec: dict[str, list[float]] = defaultdict(list)
    codec_of = cache(lambda text: Assignment.from_json(text).up_codec)
    for record in clients:
        if record.lost_share is not None:
            by_codec[codec_of(record.assignment)].append(record.lost_share)
    if not by_codec:
        return ""
    rows: list[list[Cell]] = [
        [codec, len(lost), f"{100 * float(np.median(lost)):.1f} %", f"{100 * max(lost):.1f} %"]
        for codec, lost in sorted(by_codec.items())
    ]
    return (
        "<h3>What codecs changed</h3>"
        + html_table(("Up as", "Updates", "Changed, median", "Changed, most"), rows)
        + paragraph(
            "The length of what a codec changed of an update over the update's own.",
            quiet=True,
        )
        + paragraph(_cost_of_codecs(rounds), quiet=True)
    )


def _cost_of_codecs(rounds: Sequence[RoundRecord]) -> str:
    """What rounds lost in accuracy to codecs, or how to find out."""
    pairs = with_and_without_codecs(rounds)
    if not pairs:
        return (
            "What that costs in accuracy audit.codecs: true measures round by round, and fedray compare with "
            "--grid over menu.up_codecs from the start on."
        )
    lost = [plain - coded for _, plain, coded in pairs]
    last, plain, coded = pairs[-1]
    return (
        f"Accuracy lost to codecs in round {last} alone: {plain - coded:+.3f} ({plain:.3f} had its updates "
        f"been summed as they were before coding, {coded:.3f} as they came); in the median of {len(lost)} "
        f"evaluated rounds {float(np.median(lost)):+.3f}. What earlier rounds lost is in both."
    )
