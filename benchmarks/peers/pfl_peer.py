"""pfl-research on works S, M and L, in a virtual environment with ``pfl``.

Run by `bench.py`, alone or under torchrun: ``python benchmarks/peers/pfl_peer.py WORK OUT``.
"""

import itertools
import os
import sys
import time
import types
from pathlib import Path
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm import FederatedAveraging, NNAlgorithmParams
from pfl.callback.base import TrainingProcessCallback
from pfl.data import FederatedDataset
from pfl.data.dataset import Dataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
import works

NAME, OUT = sys.argv[1], Path(sys.argv[2])
WORK = works.WORKS[NAME]


def loss(self: nn.Module, rows: Tensor, eval: bool = False) -> Tensor:
    """What pfl asks of a module: the loss of a batch."""
    self.train()
    answer: Tensor = self(input_ids=rows, labels=rows).loss
    return answer


def metrics(self: nn.Module, rows: Tensor, eval: bool = False) -> dict[str, Any]:
    """Nothing is evaluated."""
    return {}


class Marks(TrainingProcessCallback):  # type: ignore[misc]
    """Notes when each round ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Goes on."""
        self.times.append(time.perf_counter())
        return False, Metrics()


def main() -> None:
    """The rounds."""
    module = works.with_lora(works.decoder(WORK.width, WORK.blocks))
    module.loss = types.MethodType(loss, module)
    module.metrics = types.MethodType(metrics, module)
    # Every client has as many rows, so pfl's weights are equal; central SGD of rate 1 applies their mean.
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(works.trained(module), lr=1.0))
    clients = FederatedDataset(
        lambda user: Dataset(raw_data=[works.data(WORK, user)], user_id=str(user)),
        get_user_sampler("minimize_reuse", list(range(WORK.clients))),
    )
    marks = Marks()
    marks.times.append(time.perf_counter())
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=WORK.rounds,
            evaluation_frequency=10**6,
            train_cohort_size=WORK.clients,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=clients, val_data=clients),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=works.LEARNING_RATE, local_batch_size=WORK.batch
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=None),
        callbacks=[marks],
        send_metrics_to_platform=False,
    )
    rounds = [after - before for before, after in itertools.pairwise(marks.times)]
    if os.environ.get("RANK", "0") == "0":
        works.report(rounds, dict(zip(works.named(module), works.taken(module), strict=True)), OUT)


if __name__ == "__main__":
    main()
