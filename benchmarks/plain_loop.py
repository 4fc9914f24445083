"""The plain loop: transformers, PEFT and torch.optim, one client after another.

Run by `bench.py`: ``python benchmarks/plain_loop.py WORK OUT [SEED] [--device cpu|cuda]``.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import unlike
import works
from peft import PeftModel


def like(work: works.Work, device: str, out: Path) -> None:
    """FedAvg of the works whose clients are alike."""
    model = works.with_lora(works.decoder(work.width, work.blocks)).to(device)
    state, rounds = works.taken(model), []
    for _ in range(work.rounds):
        start = time.perf_counter()
        mean = [np.zeros_like(array) for array in state]
        for client in range(work.clients):
            works.given(model, state)
            works.train(model, work, client)
            mean = [
                total + array / work.clients for total, array in zip(mean, works.taken(model), strict=True)
            ]
        state = mean
        rounds.append(time.perf_counter() - start)
    works.report(rounds, dict(zip(works.named(model), state, strict=True)), out)


def mixed(seed: int, device: str, out: Path) -> None:
    """Work H: clients start from the leading ranks; their changes are averaged, padded with zeros."""
    clients = unlike.draw(seed)
    whole = works.with_lora(works.decoder(unlike.WIDTH, unlike.BLOCKS), max(unlike.RANKS)).to(device)
    state = {name: parameter.detach().clone() for name, parameter in works.named(whole).items()}
    # Each kind of client's model is built once, before the clock starts.
    models = {
        (rank, depth): works.with_lora(
            works.decoder(unlike.WIDTH, unlike.BLOCKS),
            rank,
            list(range(unlike.BLOCKS - depth, unlike.BLOCKS)),
        ).to(device)
        for rank in unlike.RANKS
        for depth in unlike.DEPTHS
    }
    rounds = []
    for _ in range(unlike.ROUNDS):
        start = time.perf_counter()
        moved = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        for client in clients:
            model = models[client.rank, client.depth]
            sent = {name: _leading(name, state[name], client.rank) for name in works.named(model)}
            with torch.no_grad():
                for name, parameter in works.named(model).items():
                    parameter.copy_(sent[name])
            _train(model, client)
            for name, parameter in works.named(model).items():
                _leading(name, moved[name], client.rank).add_(parameter.detach() - sent[name])
        state = {name: tensor + moved[name] / unlike.CLIENTS for name, tensor in state.items()}
        if device != "cpu":
            torch.accelerator.synchronize()
        rounds.append(time.perf_counter() - start)
    works.report(rounds, {name: tensor.cpu().numpy() for name, tensor in state.items()}, out)


def _leading(name: str, factor: torch.Tensor, rank: int) -> torch.Tensor:
    return factor[:rank] if name.endswith("lora_A") else factor[:, :rank]


def _train(model: PeftModel, client: unlike.Client) -> None:
    model.train()
    optimizer = torch.optim.SGD(works.trained(model), lr=works.LEARNING_RATE)
    for first in range(0, len(client.rows), unlike.BATCH):
        batch = unlike.padded(client.rows[first : first + unlike.BATCH])
        ids, mask = (part.to(model.device) for part in batch)
        logits = model(input_ids=ids, attention_mask=mask).logits
        labels = ids.masked_fill(mask == 0, -100)[:, 1:]
        losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels, reduction="none")
        # Every row counts the same, however long: the mean over a row's tokens, then over rows.
        (losses.sum(1) / (labels != -100).sum(1)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=[*works.WORKS, "H"])
    parser.add_argument("out", type=Path)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    if asked.work == "H":
        mixed(asked.seed, asked.device, asked.out)
    else:
        like(works.WORKS[asked.work], asked.device, asked.out)
