"""What the doctor runs in a process of its own: one client's real steps, and how far the process grew.

``python -m fedray.doctor.alone`` prints one line of JSON. The client is of all-MiniLM-L6-v2's shape with
random weights, LoRA of rank 8 on all blocks, AdamW: nothing is downloaded.
"""

import json
import resource
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertModel

from fedray.assignment import Assignment, lora_on_top
from fedray.doctor.machine import kibibytes
from fedray.model.anatomy import dissect
from fedray.training.audit import audit
from fedray.training.data import Encoded
from fedray.training.job import Job, lone_job
from fedray.training.optimizer import LocalOptimizer
from fedray.training.packed import Backbone
from fedray.training.shapes import initial_adapter
from fedray.training.tasks.text_classification import TextClassification
from fedray.training.train import Workshop, train_pack

_STATUS = Path("/proc/self/status")
_TARGETS = ("query", "value")
_VOCABULARY, _CLASSES, _STEPS = 30522, 16, 2


def measure(width: int, num_blocks: int, batch_size: int, tokens: int) -> dict[str, float]:
    """Train one client, first uncounted beside the process's resident set, then under the byte counter.

    Args:
        width: hidden width of the model, a multiple of 32.
        num_blocks: all of them trained.
        batch_size: rows of a step.
        tokens: of each row.
    """
    resting = _resident_bytes()
    _forget_peak()
    workshop, job = _client(width, num_blocks, batch_size, tokens)
    train_pack(workshop, [job], recompute=True)
    grown = _peak_resident_bytes() - resting
    counted = audit(workshop, job)
    return {
        "resting_bytes": resting,
        "grown_bytes": grown,
        "counted_bytes": counted.peak_bytes,
        "weights_bytes": counted.terms.weights,
    }


def _client(width: int, num_blocks: int, batch_size: int, tokens: int) -> tuple[Workshop, Job]:
    shape = BertConfig(
        vocab_size=_VOCABULARY,
        hidden_size=width,
        num_hidden_layers=num_blocks,
        num_attention_heads=width // 32,
        intermediate_size=4 * width,
    )
    anatomy = dissect(BertModel(shape, add_pooling_layer=False).requires_grad_(False))
    assignment = Assignment(
        blocks=tuple(range(num_blocks)),
        adapter=lora_on_top(num_blocks, num_blocks, 8, targets=_TARGETS),
        batch_size=batch_size,
        max_steps=_STEPS,
    )
    num_rows = _STEPS * batch_size
    workshop = Workshop(
        backbones={"fp32": Backbone.of(anatomy, [_TARGETS])},
        task=TextClassification(classes=range(_CLASSES)),
        pool=_random_rows(num_rows, tokens),
        partitions=[np.arange(num_rows)],
        optimizer=LocalOptimizer(),
        max_length=tokens,
    )
    sent = initial_adapter(anatomy, [assignment], _CLASSES, 0)
    return workshop, lone_job(assignment, sent, num_rows=num_rows, tokens=tokens)


def _random_rows(num_rows: int, tokens: int) -> Encoded:
    random = np.random.default_rng(0)
    return Encoded(
        lengths=np.full(num_rows, tokens),
        starts=np.arange(num_rows) * tokens,
        lists={"input_ids": random.integers(0, _VOCABULARY, num_rows * tokens)},
        numbers={"label": random.integers(0, _CLASSES, num_rows)},
        pad_id=0,
    )


def _resident_bytes() -> int:
    return kibibytes(_STATUS, "VmRSS") or _peak_of_process()


def _peak_resident_bytes() -> int:
    return kibibytes(_STATUS, "VmHWM") or _peak_of_process()


def _peak_of_process() -> int:
    # Where there is no /proc. On Linux it would count the parent too: it outlives exec. macOS says bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _forget_peak() -> None:
    """Let Linux start VmHWM anew; where that is refused, the imports' own peak stays, which is low."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    """Warm up on a tiny client, so that what libraries load once counts as resting; then measure."""
    # As packs train by default; more threads keep more buffers.
    torch.set_num_threads(1)
    measure(64, 2, 2, 16)
    print(json.dumps(measure(384, 6, 8, 128)))


if __name__ == "__main__":
    main()
