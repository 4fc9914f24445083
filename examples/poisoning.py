"""Four attackers among twenty clients: what a plain mean comes to, and what robust rules hold of it.

MiniLM learns which of 16 Python modules a docstring comes from, with LoRA: once all clients have the same
assignment, once ranks and depths go around, as far as they fit. Attackers flip labels, send five times the
opposite of what they learnt, or teach a backdoor (three words that mean the first module, with updates four
times as large). Some thirty runs, half an hour on two busy cores::

    python examples/poisoning.py runs/poisoning
    python examples/poisoning.py runs/flipped --menus mixed --attacks none label_flip

prints a table and leaves it as ``table.csv``, with ``picture.png`` and the folder of each run. Called again
it goes on where it was broken off. All clients are asked in every round, so a fifth of the updates are
attackers'; rules that must guess a share of attackers are told 0.3. Nothing was tuned.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from experiment import Rows, close, options, ran, write
from fedray.cost import Ints
from fedray.policy import Cohort, Offers

MENUS: dict[str, dict[str, Any]] = {
    "alike": {"ranks": [4], "depths": [2]},
    "mixed": {"ranks": [2, 4, 8], "depths": [1, 2, 4]},
}
ATTACKS: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    "sign_flip": {"name": "sign_flip", "share": 0.2, "factor": 5.0},
    "backdoor": {"name": "backdoor", "share": 0.2, "factor": 4.0},
    "label_flip": {"name": "label_flip", "share": 0.2},
}
RULES: dict[str, dict[str, Any]] = {
    "mean": {"name": "coverage_mean"},
    "median": {"name": "median"},
    "multi_krum": {"name": "multi_krum", "options": {"share": 0.3}},
    "geometric_median": {"name": "geometric_median"},
}


def in_turn(cohort: Cohort, offers: Offers) -> Ints:
    """Of what fits a client the entry whose turn it is by its id."""
    entries = np.arange(len(offers.menu))[:, None]
    return offers.best((entries + cohort.client_ids) % len(offers.menu))


def configuration(menu: str, attack: str, rule: str, num_rounds: int = 6, threads: int = 2) -> dict[str, Any]:
    """One run's."""
    return {
        "model": "minilm",
        "data": {
            "source": "docstrings",
            "partitioner": {"name": "dirichlet", "alpha": 1.0, "min_partition_size": 16},
            "num_clients": 20,
            "max_length": 32,
        },
        "fleet": {"name": "phones", "memory_share": 0.6},
        "menu": {**MENUS[menu], "per_device_train_batch_size": [8]},
        "training": {
            "learning_rate": 3e-3,
            "head_learning_rate": 2e-2,
            "lr_scheduler_type": "linear",
            "max_steps": 4,
        },
        "rounds": {"num_rounds": num_rounds, "clients_per_round": 20, "eval_rounds": num_rounds},
        "aggregation": RULES[rule],
        "attackers": ATTACKS[attack],
        "packs": {"clients_per_pack": 10, "threads_per_pack": threads},
        "audit": {"share": 0.0},
        "runtime": "local",
    }


def settings(
    menus: Sequence[str] = tuple(MENUS), attacks: Sequence[str] = tuple(ATTACKS)
) -> Iterator[tuple[str, str, str]]:
    """Menu, attack and rule of every run."""
    for attack in attacks:
        for menu in menus:
            yield from ((menu, attack, rule) for rule in RULES)


def measured(menu: str, attack: str, rule: str, out: Path) -> dict[str, Any]:
    """A row of the table, from the tables of a run."""
    last = pq.read_table(out / "rounds.parquet").to_pylist()[-1]
    clients = pq.read_table(out / "clients.parquet").to_pylist()
    facts = {name: last[name] for name in ("accuracy", "loss", "attack_success")}
    counted = [row for row in clients if row["outcome"] == "ok"]
    return {
        "menu": menu,
        "attack": attack,
        "rule": rule,
        **facts,
        "attackers_share": sum(bool(row["attack"]) for row in counted) / len(counted),
        "assignments": len({row["assignment"] for row in counted}),
    }


def show(rows: Rows) -> None:
    """The table, on the terminal."""
    print("menu   attack      rule              accuracy    loss  backdoor  attackers'  assignments")
    for row in rows:
        success = "" if row["attack_success"] is None else f"{row['attack_success']:.3f}"
        print(
            f"{row['menu']:5s}  {row['attack']:10s}  {row['rule']:16s}  {row['accuracy']:8.3f}  "
            f"{row['loss']:6.3f}  {success:>8s}  {row['attackers_share']:10.2f}  {row['assignments']:11d}",
            flush=True,
        )


def draw(rows: Rows, file: Path) -> None:
    """Accuracy by attack, a bar for each rule; and how often the backdoor opens."""
    with mpl.rc_context({"font.size": 8}):
        figure = Figure(figsize=(9, 3), layout="constrained")
        places = figure.subplots(1, 3, sharey=True)
        for number, rule in enumerate(RULES):
            at = [x + 0.2 * number for x in range(len(ATTACKS))]
            for place, menu in zip(places, MENUS, strict=False):
                found = {(r["menu"], r["attack"], r["rule"]): r["accuracy"] for r in rows}
                place.bar(at, [found.get((menu, a, rule), 0.0) for a in ATTACKS], 0.18, label=rule)
                place.set(title=f"accuracy, {menu}", xticks=[x + 0.3 for x in range(len(ATTACKS))])
                place.set_xticklabels([attack.replace("_", "\n") for attack in ATTACKS])
            opened = {r["menu"]: r["attack_success"] or 0.0 for r in rows if r["rule"] == rule}
            places[2].bar([x + 0.2 * number for x in range(2)], [opened.get(m, 0.0) for m in MENUS], 0.18)
        places[2].set(title="backdoor opens", xticks=[0.3, 1.3], xticklabels=list(MENUS))
        figure.legend(*places[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(RULES))
        figure.savefig(file, dpi=150)


def main() -> None:
    """All runs, one after the other; what is there already is read."""
    parser = options(__doc__, rounds=6)
    parser.add_argument("--threads", type=int, default=2, help="of each run")
    parser.add_argument("--menus", nargs="+", choices=tuple(MENUS), default=tuple(MENUS))
    parser.add_argument("--attacks", nargs="+", choices=tuple(ATTACKS), default=tuple(ATTACKS))
    given = parser.parse_args()
    rows = []
    for menu, attack, rule in settings(given.menus, given.attacks):
        config = configuration(menu, attack, rule, given.rounds, given.threads)
        place = given.out / f"{menu}_{attack}_{rule}"
        rows.append(measured(menu, attack, rule, ran(place, config, in_turn)))
        show(rows[-1:])
        write(rows, given.out, draw)
    close(rows, given.out, show)


if __name__ == "__main__":
    main()
