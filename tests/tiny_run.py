"""Whole runs in seconds: tiny random models with a tokenizer, made-up rows, four unlike devices."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from fedray import engine
from fedray.adapter import Adapter, GlobalState
from fedray.config import load_config
from fedray.engine import play_round
from fedray.environment import open_runtime
from fedray.holdings import Holdings
from fedray.progress import Progress
from fedray.rounds import Runtime
from fedray.scene import Scene, furnish, set_scene
from fedray.tapped import TappedRuntime
from fedray.training.shapes import initial_adapter
from fedray.training.tap import Tap

WORDS = 44
SIZES = {
    "vocab_size": WORDS + 4,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
MODELS = {
    "bert": (AutoModel, BertConfig(**SIZES)),
    "llama": (AutoModelForCausalLM, LlamaConfig(**SIZES, num_key_value_heads=2)),
}
# The wall's columns: what a run took, not what it computed.
WALL = ("wall_seconds", "attempts")
KIB = 1024
# A policy: every third client keeps the whole model, the others have a cut, half of them with a tail.
RIDING = """
import numpy as np

def assign(cohort, offers):
    cut = np.array([entry.split for entry in offers.menu])
    tail = np.array([entry.tail for entry in offers.menu])
    wanted = (cohort.client_ids % 3)[None]
    key = np.where(wanted == 0, ~cut[:, None], cut[:, None] & (tail[:, None] == wanted - 1))
    return offers.best(key * 1000 + offers.sum_of_ranks[:, None])
"""


def save_model(folder: Path, family: str) -> str:
    """A random checkpoint of four blocks with a tokenizer over 44 words."""
    torch.manual_seed(3)
    loader, config = MODELS[family]
    loader.from_config(config).save_pretrained(folder)
    words = ["<pad>", "<unk>", "<s>", "</s>", *(f"w{i}" for i in range(WORDS))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="</s>"
    ).save_pretrained(folder)
    return str(folder)


def save_rows(path: Path, num_rows: int = 200) -> str:
    """Four labels, each with eleven words of its own; texts of 4 to 16 words by ten writers."""
    random = np.random.default_rng(5)
    with path.open("w") as file:
        for row in range(num_rows):
            label = row % 4
            words = label * 11 + random.integers(0, 11, random.integers(4, 17))
            text = " ".join(f"w{word}" for word in words)
            file.write(json.dumps({"text": text, "label": f"l{label}", "writer": f"p{row % 10}"}) + "\n")
    return str(path)


def save_fleet(path: Path, memory_kib: list[int] | None = None, **columns: object) -> str:
    """Eight clients of four classes; the tiny model's assignments need 100 to 230 KiB."""
    memory = memory_kib or [120, 140, 180, 400, 120, 140, 180, 400]
    names = ["watch", "phone", "tablet", "laptop"]
    given = {
        "device_class": [names[i % 4] for i in range(len(memory))],
        "memory_bytes": [kib * KIB for kib in memory],
        "flops_per_s_fp32": [2e7 * (1 + i % 4) for i in range(len(memory))],
        "up_bps": [1e5] * len(memory),
        "down_bps": [4e5] * len(memory),
        "rtt_seconds": [0.05] * len(memory),
        **columns,
    }
    lines = [",".join(given), *(",".join(map(_cell, row)) for row in zip(*given.values(), strict=True))]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def configuration(folder: Path) -> dict[str, Any]:
    """Three rounds on the tiny BERT, eight clients, a menu of four; what it names lies in the folder.

    No page: drawing one takes longer than the three rounds.
    """
    return {
        "model": save_model(folder / "bert", "bert"),
        "data": {
            "source": save_rows(folder / "rows.jsonl"),
            "partitioner": {"name": "dirichlet", "alpha": 1.0, "min_partition_size": 4},
            "num_clients": 8,
            "max_length": 16,
        },
        "fleet": save_fleet(folder / "fleet.csv"),
        "menu": {"ranks": [2, 4], "depths": [1, "all"], "per_device_train_batch_size": [4]},
        "training": {"learning_rate": 1e-2},
        "rounds": {"num_rounds": 3, "clients_per_round": 5},
        "packs": {"clients_per_pack": 2},
        "runtime": "local",
        "report": False,
    }


def _cell(value: object) -> str:
    text = str(value)
    return '"' + text.replace('"', '""') + '"' if '"' in text or "," in text else text


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with some keys changed, group by group."""
    tree = dict(base)
    for key, value in changes.items():
        old = tree.get(key)
        both = isinstance(value, dict) and isinstance(old, dict)
        tree[key] = merged(old, value) if both and "name" not in value else value
    return tree


def begun(config: Mapping[str, Any]) -> tuple[Scene, Progress]:
    """A run before its first round, without a folder."""
    scene = set_scene(load_config(config), engine.CACHE_DIR)
    adapter = initial_adapter(scene.anatomy, scene.menu, scene.num_labels, scene.config.seed)
    preinstalled = scene.config.provision == "preinstalled"
    holdings = Holdings(scene.num_clients, preinstalled=preinstalled)
    return scene, Progress(state=GlobalState(adapter=adapter), holdings=holdings)


def opened(config: Mapping[str, Any]) -> tuple[Scene, Progress, Runtime]:
    """The same with its runtime, to be closed."""
    scene, progress = begun(config)
    blueprint, stock, model = furnish(scene, "cpu")
    return scene, progress, open_runtime(scene, blueprint, stock, model)


def played(config: Mapping[str, Any], taps: Sequence[Tap] = ()) -> Progress:
    """All rounds of a run, without what it would leave on disk: half of a tiny run's time is its report."""
    scene, progress, opened_runtime = opened(config)
    runtime: Runtime = TappedRuntime(opened_runtime, taps) if taps else opened_runtime
    try:
        for number in range(1, scene.config.rounds.num_rounds + 1):
            play_round(scene, progress, runtime, number)
    finally:
        runtime.close()
    return progress


def records(out: Path, name: str, drop: tuple[str, ...] = WALL) -> list[dict[str, Any]]:
    """The rows of one of a run's tables without the wall's columns."""
    rows = pq.read_table(out / f"{name}.parquet").to_pylist()
    return [{key: value for key, value in row.items() if key not in drop} for row in rows]


def assert_same_run(one: Path, other: Path) -> None:
    """Everything that two runs computed is equal, bit for bit."""
    for name in ("clients", "rounds", "evaluations"):
        assert records(one, name) == records(other, name)
    files = sorted(path.name for path in (one / "adapter").iterdir())
    assert files == sorted(path.name for path in (other / "adapter").iterdir())
    assert len(files) >= 2
    for file in files:
        assert (one / "adapter" / file).read_bytes() == (other / "adapter" / file).read_bytes()


def assert_same_adapter(one: Adapter, other: Adapter) -> None:
    """Names, shapes and bits."""
    assert_same_tensors(one.tensors(), other.tensors())


def assert_same_tensors(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> None:
    """Names in order, shapes and bits."""
    assert list(left) == list(right)
    assert all(torch.equal(left[name], right[name]) for name in left)
