"""What ZeRO-3 shards hold, and what sweeping everybody at once saves: ``python benchmarks/zero_shards.py``.

Builds a decoder of 200 million random weights in a temporary folder, opens two shards on it, and prints the
weight bytes that each holds at most over ten sweeps, and the steps per second of 16 clients at mixed cuts
in one sweep against one client after another. Ratios of one run: machines differ.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import ray
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fedray.assignment import Assignment, lora_on_top
from fedray.model.anatomy import dissect
from fedray.model.load import empty_backbone
from fedray.runtime.ray_server import ZeroServer
from fedray.server.lockstep import SplitRound
from fedray.server.settings import ServerFacts, zero_settings
from fedray.server.shard_blueprint import ShardBlueprint
from fedray.training.boundary import Message, coded_states
from fedray.training.job import Job
from fedray.training.optimizer import LocalOptimizer
from fedray.training.shapes import initial_adapter
from fedray.training.tasks.causal_lm import CausalLm
from fedray.units import show_bytes

TARGETS = ("q_proj", "v_proj")
CLIENTS, ROWS, TOKENS, RANK = 16, 1, 16, 8


def config_of(millions: int) -> LlamaConfig:
    """A decoder of about so many million weights, 13 million a block."""
    return LlamaConfig(
        vocab_size=4096,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=max(2, round((millions - 8) / 12.85)),
        num_attention_heads=16,
        max_position_embeddings=512,
        pad_token_id=0,
    )


def jobs_of(config: LlamaConfig) -> list[Job]:
    """One client for each of 16 cuts spread over the blocks."""
    blocks = config.num_hidden_layers
    anatomy = dissect(empty_backbone(config, "causal_lm"))
    lora = lora_on_top(blocks, blocks, RANK, targets=TARGETS)
    jobs = []
    for client in range(CLIENTS):
        cut = 1 + client % (blocks // 2)
        assignment = Assignment(
            blocks=tuple(range(cut)), split=True, adapter=lora, batch_size=ROWS, max_steps=1
        )
        jobs.append(
            Job(
                round=1,
                client_id=client,
                dispatch=0,
                version=0,
                seed=0,
                assignment=assignment,
                attention="memory_efficient",
                sent=initial_adapter(anatomy, [assignment], 0, client),
                num_rows=ROWS,
                num_steps=1,
                tokens=TOKENS,
            )
        )
    return jobs


def messages_of(jobs: Sequence[Job], width: int) -> dict[int, dict[int, Message]]:
    """Hidden states of random tokens, as the clients would send them."""
    lengths = torch.full((ROWS,), TOKENS, dtype=torch.int32)
    out = {}
    for place, job in enumerate(jobs):
        states = coded_states(torch.randn(ROWS, TOKENS, width), lengths, "none", 0)
        ids = torch.randint(1, 4096, (ROWS * TOKENS,), dtype=torch.int32)
        out[place] = {
            job.client_id: Message(states=states, lengths=lengths, token_targets={"input_ids": ids})
        }
    return out


def sweep(server: ZeroServer, messages: Mapping[int, Mapping[int, Message]]) -> None:
    """Up, back and a step for the packs given."""
    server.forward(messages)
    server.backward({})
    server.settle({})


def main() -> None:
    """Print both findings."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--millions", type=int, default=200, help="weights of the backbone")
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--deepspeed", default="zero3", help="a shipped JSON's name, or a path")
    asked = parser.parse_args()
    config = config_of(asked.millions)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        model.save_pretrained(folder)
        sizes = [p.numel() for p in model.parameters()]
        block = sum(p.numel() for p in model.model.layers[0].parameters())
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        del model
        facts = ServerFacts(
            num_params=sum(sizes),
            block_params=block,
            largest_param=max(sizes),
            dtype="fp32",
            micro_batch=ROWS,
            num_shards=asked.shards,
        )
        blueprint = ShardBlueprint(
            config=config,
            checkpoint=Path(folder),
            num_blocks=config.num_hidden_layers,
            dtype="fp32",
            task=CausalLm(),
            optimizer=LocalOptimizer(optim="sgd", max_grad_norm=None),
            buffers=buffers,
            targets=TARGETS,
            attention="memory_efficient",
            recompute=False,
            settings=zero_settings(asked.deepspeed, facts),
            threads=1,
            device="cpu",
            time_limit_seconds=300,
        )
        ray.init(num_cpus=asked.shards, include_dashboard=False, log_to_driver=False)
        server = ZeroServer(blueprint, asked.shards)
        jobs = jobs_of(config)
        packs = {place: [replace(job)] for place, job in enumerate(jobs)}
        messages = messages_of(jobs, config.hidden_size)
        server.open(SplitRound(packs=packs))
        server.watch()
        for _ in range(10):
            sweep(server, messages)
        for shard, (whole, part, gathered) in enumerate(server.watched()):
            limit = 0.55 * whole + block * 4
            print(
                f"shard {shard}: part {show_bytes(part)} and at most {show_bytes(gathered)} gathered of "
                f"{show_bytes(whole)}; together {(part + gathered) / limit:.2f} of the limit "
                f"(0.55 of the whole and a block, {show_bytes(int(limit))})"
            )
        start = time.perf_counter()
        for _ in range(3):
            sweep(server, messages)
        together = 3 * CLIENTS / (time.perf_counter() - start)
        start = time.perf_counter()
        for place in messages:
            sweep(server, {place: messages[place]})
        alone = CLIENTS / (time.perf_counter() - start)
        print(
            f"{CLIENTS} clients at mixed cuts: {together:.2f} steps/s in one sweep, {alone:.2f} one after "
            f"another: {together / alone:.1f} times (target 3)"
        )
        server.close()
        ray.shutdown()


if __name__ == "__main__":
    main()
