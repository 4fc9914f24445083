"""The section on protection: what is done to updates, and what rounds have used up of clients' privacy."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from fedray.record import ClientRecord, RoundRecord
from fedray.report.markup import Cell, Section, folded, html_table, paragraph
from fedray.report.reading import Run
from fedray.units import show_bytes

_WHERE = {
    "central": "The server sees every update and adds noise to their sum: the promise is about whoever sees "
    "the model.",
    "local": "Every client adds noise to its update before it is sent: the promise is about the server, too.",
}


def is_protected(run: Run) -> bool:
    """Whether there is anything to say."""
    asked = (is_private, _is_noised_at_cuts, _is_masked, _is_attacked)
    return any(is_so(run) for is_so in asked) or bool(_told(run) or _overheard(run) or _leaking(run))


def is_private(run: Run) -> bool:
    """Whether updates are cut, and mostly noised."""
    return bool(_section(run, "privacy").get("where"))


def _is_noised_at_cuts(run: Run) -> bool:
    return _section(run, "privacy").get("cut_clip_norm") is not None


def _is_attacked(run: Run) -> bool:
    return bool(_section(run, "attackers").get("share"))


def _is_masked(run: Run) -> bool:
    return _section(run, "secure_aggregation").get("masks") == "pairwise"


def epsilon_tile(run: Run) -> tuple[str, str, str]:
    """What has been used up, for the headline."""
    found = [record.epsilon for record in run.rounds if record.epsilon is not None]
    section = _section(run, "privacy")
    if not found:
        return "Epsilon", "\u221e", f"{section['where']}: updates are cut, and there is no noise"
    return "Epsilon", f"{found[-1]:.3g}", f"{section['where']}, at delta {section['delta']:g}"


def protection(run: Run) -> Section:
    """What is done to updates, and what it came to."""
    body = _privacy(run) if is_private(run) else ""
    body += _at_cuts(run) if _is_noised_at_cuts(run) else ""
    body += _leaks(run) if _leaking(run) else ""
    body += _masks(run) if _is_masked(run) else ""
    body += _attackers(run) if _is_attacked(run) else ""
    body += _membership(run) if _told(run) else ""
    body += _of_updates(run) if _overheard(run) else ""
    return Section(anchor="protection", title="Protection and attacks", body=body)


def _at_cuts(run: Run) -> str:
    section = _section(run, "privacy")
    norm, noise = section["cut_clip_norm"], section.get("cut_noise_multiplier", 0)
    told = [record.cut_epsilon for record in run.rounds if record.cut_epsilon is not None]
    promised = (
        f"Of the privacy of one row of a client, replaced by another, epsilon {told[-1]:.3g} has been used "
        f"up at most (at delta {section['delta']:g}), over all its tokens, steps and rounds."
        if told
        else "Without noise nothing is promised."
    )
    return paragraph(
        f"Before a token's hidden state crosses a cut it is cut to a norm of {norm:g}, and noise of "
        f"{noise:g} times that lies on every entry. {promised} Rows' lengths and labels, gradients that "
        "cross, updates and what a client's own side has learnt are not covered."
    )


def _leaking(run: Run) -> list[ClientRecord]:
    return [record for record in run.clients if record.leakage is not None]


def _leaks(run: Run) -> str:
    """What cuts that clients had give away, as it was measured before the run."""
    told = _leaking(run)
    by_cut = sorted(Counter((record.cut or 0, record.leakage or 0.0) for record in told).items())
    mean = sum(found * count for (_, found), count in by_cut) / len(told)
    rows: list[list[Cell]] = [[str(cut), found, f"{count:,}"] for (cut, found), count in by_cut]
    return paragraph(
        f"Inverting hidden states at the cut that a client had finds {100 * mean:.0f} % on average, over "
        f"{len(told):,} client-rounds under cuts: of texts that is the share of tokens, of images of what "
        "tells them from the mean one. It was measured once, before any training, with what clients do to "
        "hidden states. Stronger attacks find more (leakage.attack: search, fedray.attacks)."
    ) + html_table(("Cut", "Found", "Client-rounds"), rows)


def _attackers(run: Run) -> str:
    section = _section(run, "attackers")
    counted = [record for record in run.clients if record.outcome == "ok"]
    attacks = [record for record in counted if record.attack]
    aggregation = _section(run, "aggregation").get("name", "auto")
    body = paragraph(
        f"{100 * section['share']:g} % of the clients are attackers ({section['name']}): "
        f"{len(attacks)} of the {len(counted)} updates that were summed are theirs. "
        f"Aggregation: {aggregation}."
    )
    successes = [record for record in run.rounds if record.attack_success is not None]
    if successes:
        last = successes[-1]
        body += paragraph(
            f"After round {last.round}, {100 * (last.attack_success or 0):.0f} % of test rows of other "
            "classes were said to be the attackers' class once they had the trigger."
        )
    return body


def _told(run: Run) -> list[RoundRecord]:
    return [record for record in run.rounds if record.membership_auc is not None]


def _membership(run: Run) -> str:
    told = _told(run)
    last = told[-1]
    head = ("Round", "AUC", "Named at 1 % false", "AUC by ratio", "Named by ratio")
    rows: list[list[Cell]] = [
        [str(r.round), r.membership_auc, r.membership_found, r.membership_ratio_auc, r.membership_ratio_found]
        for r in told
    ]
    width = 3 if all(r.membership_ratio_auc is None for r in told) else 5
    return paragraph(
        "Who knows the model and a row's label can guess from its loss whether its client trained on it. "
        f"After round {last.round} the area under the curve is {last.membership_auc:.3f} (0.5 is guessing), "
        f"and {100 * (last.membership_found or 0):.0f} % of such rows are named where one in a hundred "
        f"others is. {_ratio(run, last)}"
    ) + folded(f"Every evaluation ({len(told)})", html_table(head[:width], [row[:width] for row in rows]))


def _ratio(run: Run, last: RoundRecord) -> str:
    """What shadow models add to that, or how to ask for them."""
    shadows = _section(run, "attacks").get("shadows")
    if not shadows:
        return "A likelihood ratio against shadow models may find more; attacks.shadows: 8 asks for it."
    if last.membership_ratio_auc is None:
        return f"Too many of the {shadows} shadow models' losses were no numbers to tell more by them."
    return (
        f"Held to {shadows} shadow models, trained on halves of the rows that are asked about, it is "
        f"{last.membership_ratio_auc:.3f} by likelihood ratio, and "
        f"{100 * (last.membership_ratio_found or 0):.0f} % are named."
    )


def _overheard(run: Run) -> list[RoundRecord]:
    return [r for r in run.rounds if (r.words_found, r.images_psnr, r.labels_found) != (None, None, None)]


def _of_updates(run: Run) -> str:
    """What was found of single updates, and of gradients at tails, as the server has them."""
    told = _overheard(run)
    last, body = told[-1], ""
    if last.words_found is not None:
        body += (
            f"Inverting updates finds {100 * last.words_found:.0f} % of the words that their clients trained "
            f"on; always saying the commonest word finds {100 * (last.words_floor or 0):.0f} %. "
        )
    if last.images_psnr is not None:
        body += (
            f"Inverting updates finds images with a PSNR of {last.images_psnr:.1f} dB; the mean image has "
            f"{last.images_floor or 0:.1f} dB. "
        )
    if last.labels_found is not None:
        body += (
            f"{100 * last.labels_found:.0f} % of labels are told; always saying the commonest tells "
            f"{100 * (last.labels_floor or 0):.0f} %. "
        )
    rows: list[list[Cell]] = [
        [str(r.round), r.words_found, _decibels(r.images_psnr), r.labels_found] for r in told
    ]
    head = ("Round", "Words found", "PSNR of images", "Labels told")
    return paragraph(
        f"{body}That is after round {last.round}, of up to {_section(run, 'attacks')['clients']} "
        "clients, from what the server has: after noise and codecs. Stronger attacks find more "
        "(fedray.attacks)."
    ) + folded(f"Every attack ({len(told)})", html_table(head, rows))


def _decibels(value: float | None) -> Cell:
    return None if value is None else f"{value:.1f} dB"


def _masks(run: Run) -> str:
    sent = [record for record in run.clients if record.outcome == "ok"]
    padding, total = sum(r.padding_bytes for r in sent), sum(r.up_bytes for r in sent)
    lost = sum("to take the masks away" in record.message for record in run.clients)
    return paragraph(
        "Updates are masked integers, and the server sees their sum alone. Everybody sends a number for all "
        f"that anybody trains: of the {show_bytes(total)} that came up, {show_bytes(padding)} are padding. "
        f"{lost or 'No'} client-rounds were lost because too few came."
    ) + paragraph(
        "A simulation of the protocol of 1611.04482: keys are not agreed on, nor their bytes counted. Its "
        "threat is a server that follows the protocol and is curious.",
        quiet=True,
    )


def _privacy(run: Run) -> str:
    section = _section(run, "privacy")
    where, multiplier = section["where"], section["noise_multiplier"]
    body = paragraph(
        f"Each update is cut to a norm of {section['clip_norm']:g}, and noise of {multiplier:g} times that "
        f"lies on every entry. {_WHERE[where]}"
        if multiplier
        else f"Each update is cut to a norm of {section['clip_norm']:g}; without noise nothing is promised."
    )
    body += paragraph(
        "Epsilon is that of a client as a whole, over all rounds so far. It covers what is learnt, not the "
        "losses, times and sizes in these records, which a real server would see of its clients. The noise "
        "follows from the run's seed: whoever knows that can take it away.",
        quiet=True,
    )
    if multiplier:
        body += folded(f"Every round ({len(run.rounds)})", _every_round(run, where))
    return body


def _every_round(run: Run, where: str) -> str:
    rated = where == "central"
    head = ("Round", *(("Chance to be asked",) if rated else ()), "Epsilon", "Accuracy")
    rows: list[list[Cell]] = [
        [
            str(r.round),
            *([None if r.sampling_rate is None else f"{r.sampling_rate:.3g}"] if rated else []),
            None if r.epsilon is None else f"{r.epsilon:.4g}",
            r.accuracy,
        ]
        for r in run.rounds
    ]
    return html_table(head, rows)


def _section(run: Run, name: str) -> Mapping[str, Any]:
    found = run.config.get(name)
    return found if isinstance(found, Mapping) else {}
