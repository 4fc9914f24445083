"""The works that every engine is timed on: FedAvg of LoRA adapters over a frozen, seeded decoder.

Everybody trains rank 8 (alpha 16) on the query and value projections with plain SGD; a client's data, the
weights and the first adapter come from fixed seeds, so every engine must end with the same numbers. This file
and what it imports run in the peers' virtual environments too: torch, transformers, peft and numpy alone.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 512
RANK = 8
SCALE = 2.0  # alpha / rank
LEARNING_RATE = 1e-3
TARGETS = ("q_proj", "v_proj")

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Like clients, each with ``steps`` batches of ``batch`` rows of ``tokens`` tokens.

    Attributes:
        check: sum of the absolute adapter entries after the rounds, as several engines agreed on it.
    """

    width: int
    blocks: int
    tokens: int
    batch: int
    steps: int
    clients: int
    rounds: int
    check: float


WORKS: Mapping[str, Work] = {
    "S": Work(width=64, blocks=2, tokens=16, batch=2, steps=2, clients=128, rounds=6, check=127.45694),
    "M": Work(width=128, blocks=4, tokens=32, batch=4, steps=2, clients=64, rounds=4, check=362.38984),
    "L": Work(width=256, blocks=6, tokens=64, batch=4, steps=4, clients=64, rounds=4, check=766.10713),
}


def decoder(width: int, blocks: int) -> LlamaForCausalLM:
    """The frozen decoder, its weights drawn from seed 0."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
    )
    return LlamaForCausalLM(config).requires_grad_(False)


def with_lora(model: LlamaForCausalLM, rank: int = RANK, layers: list[int] | None = None) -> PeftModel:
    """PEFT's model, A drawn from seed 1 and B zero; ``layers`` alone, or all."""
    torch.manual_seed(1)
    config = LoraConfig(
        r=rank,
        lora_alpha=int(SCALE * rank),
        target_modules=list(TARGETS),
        layers_to_transform=layers,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    assert isinstance(adapted, PeftModel)
    return adapted


def trained(model: nn.Module) -> list[nn.Parameter]:
    """What an engine trains, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def named(model: nn.Module) -> dict[str, nn.Parameter]:
    """The same by fedray's flat names, such as ``layers.0.self_attn.q_proj.lora_A``."""
    return {
        name.removeprefix("base_model.model.model.").removesuffix(".default.weight"): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def taken(model: nn.Module) -> list[NDArray[Any]]:
    """Copies of what is trained."""
    return [parameter.detach().cpu().numpy().copy() for parameter in trained(model)]


def given(model: nn.Module, arrays: list[NDArray[Any]]) -> None:
    """Write arrays, in the order of `taken`, into the model."""
    with torch.no_grad():
        for parameter, array in zip(trained(model), arrays, strict=True):
            parameter.copy_(torch.from_numpy(np.asarray(array)))


def data(work: Work, client: int) -> Tensor:
    """A client's rows in the order of its batches, [steps * batch, tokens]; odd tokens follow a rule."""
    generator = torch.Generator().manual_seed(1000 + client)
    rows = torch.randint(0, VOCABULARY, (work.steps * work.batch, work.tokens), generator=generator)
    rows[:, 1::2] = (7 * rows[:, ::2] + client) % VOCABULARY
    return rows


def train(model: nn.Module, work: Work, client: int) -> float:
    """A client's local steps, as anybody would write them; the last loss."""
    model.train()
    optimizer = torch.optim.SGD(trained(model), lr=LEARNING_RATE)
    last = 0.0
    device = next(model.parameters()).device
    for batch in data(work, client).to(device).split(work.batch):
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        last = float(loss.detach())
    return last


def check(arrays: Arrays) -> float:
    """Sum of absolute entries: one number that differs where adapters differ."""
    return float(sum(float(np.abs(array).sum()) for array in arrays.values()))


def report(rounds: list[float], adapter: Arrays, out: Path) -> None:
    """Leave what an engine measured and made where `bench.py` finds it: seconds by round, the adapter."""
    np.savez(out.with_suffix(".npz"), **adapter)
    out.with_suffix(".json").write_text(json.dumps({"rounds": rounds, "check": check(adapter)}))
