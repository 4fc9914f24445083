"""The examples on public data sets, on a few local rows with the hub's own columns and a tiny model."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest

import fedray
from fedray.record import ClientRecord
from image_run import save_vit
from tiny_run import save_model

FEW = [
    "runtime=local",
    "rounds.num_rounds=2",
    "rounds.eval_rounds=2",
    "rounds.clients_per_round=2",
    "data.max_rows=null",
    "audit.distinct=false",
    "menu.ranks=[4]",
    "menu.recompute=[false]",
    "menu.depths=[all]",
]


def words(random: np.random.Generator) -> str:
    return " ".join(f"w{word}" for word in random.integers(0, 44, random.integers(3, 9)))


def save_lines(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def dolly(folder: Path) -> list[str]:
    random = np.random.default_rng(0)
    kinds = ["closed_qa", "open_qa", "summarization"]
    rows = [
        {
            "instruction": words(random),
            "context": words(random) if row % 2 else "",  # as on the hub, where most have none
            "response": words(random),
            "category": kinds[row % 3],
        }
        for row in range(48)
    ]
    return [f"data.source={save_lines(folder / 'dolly.jsonl', rows)}", f"model={save_model(folder, 'llama')}"]


def fed_aya(folder: Path) -> list[str]:
    random = np.random.default_rng(0)
    rows = [
        {
            "inputs": words(random),
            "targets": words(random),
            "language": "English",
            "language_code": "eng",
            "annotation_type": "original-annotations",
            "user_id": f"user{row % 4}",
        }
        for row in range(60)
    ]
    return [
        f"data.source={save_lines(folder / 'aya.jsonl', rows)}",
        f"model={save_model(folder, 'llama')}",
        "data.partitioner.min_rows=5",
        "task.options.max_new_tokens=2",
        "menu.weight_bits=[4]",
    ]


def sst2(folder: Path) -> list[str]:
    random = np.random.default_rng(0)
    rows = [{"sentence": words(random), "label": row % 2, "idx": row} for row in range(80)]
    return [
        f"data.source={save_lines(folder / 'sst2.jsonl', rows)}",
        "data.subset=null",
        f"model={save_model(folder, 'bert')}",
        "data.num_clients=4",
        "data.partitioner.alpha=5",
    ]


def cifar100(folder: Path) -> list[str]:
    random = np.random.default_rng(0)
    features = datasets.Features(
        img=datasets.Image(), fine_label=datasets.ClassLabel(100), coarse_label=datasets.ClassLabel(20)
    )
    rows = {
        "img": [random.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(80)],
        "fine_label": [row % 10 for row in range(80)],
        "coarse_label": [row % 5 for row in range(80)],
    }
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder / "cifar")
    return [
        f"data.source={folder / 'cifar'}",
        f"model={save_vit(folder / 'vit')}",
        "data.num_clients=4",
        "menu.cuts=[2]",
    ]


@pytest.mark.parametrize("fixture", [dolly, fed_aya, sst2, cifar100])
def test_an_example_on_a_public_data_set_runs_on_its_columns(
    fixture, repository: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "fixture"
    folder.mkdir()
    example = repository / "examples" / f"{fixture.__name__}.yaml"
    overrides = [*fixture(folder), *FEW]
    result = fedray.run(example, out=tmp_path / "run", overrides=overrides)
    assert len(result.rounds) == 2
    assert all(isinstance(record, ClientRecord) and record.outcome == "ok" for record in result.clients)
    assert result.rounds[-1].loss is not None
    assert np.isfinite(result.rounds[-1].loss)
