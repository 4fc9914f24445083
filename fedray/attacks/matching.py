"""Gradient inversion by search: images whose gradient points where a client's did.

Inverting-gradients-style (2003.14053): cosine distance over all that is trained, total variation for
smoothness, Adam on the gradient's sign. Labels are taken as known, for of one row `updates.classes_in` has
them. A search finds a lower bound of what a gradient gives away: another start or more steps may find more.

Letters of shapes: N rows, C channels, H height, W width.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fedray.adapter import WEIGHTS, Adapter
from fedray.assignment import Assignment
from fedray.errors import ConfigError
from fedray.training.optimizer import LocalOptimizer
from fedray.training.packed import Backbone, course_of, loss_of_clients
from fedray.training.task import Batch, Task
from fedray.training.train import stack_of

GradientsOf = Callable[[Tensor], Sequence[Tensor]]
# When of all steps the learning rate falls to a tenth.
_FALLS = (3 / 8, 5 / 8, 7 / 8)


def gradients_of_images(
    backbone: Backbone, task: Task, assignment: Assignment, sent: Adapter, batch: Batch
) -> GradientsOf:
    """From images [N, C, H, W] in the place of a batch's own to the gradients of all that a client trains.

    They are in the order of the adapter's own tensors, each behind an axis of one client.

    Args:
        backbone: as the client has it.
        task: whose loss.
        assignment: of a whole model.
        sent: what the client started from.
        batch: with the labels, its mask and ``weight``.

    Raises:
        ConfigError: for a model of text, whose tokens no gradient moves.
    """
    anatomy = backbone.anatomy
    if anatomy.takes_text:
        raise ConfigError(
            f"A search moves pixels, and into this {anatomy.model.config.model_type} model go token ids; "
            "look for words with span_recovery."
        )
    # The other kernel has no second derivative.
    course = course_of(assignment, "eager", recompute=False)
    stack = stack_of([sent], LocalOptimizer(optim="sgd"), str(batch["weight"].device))

    def gradients(images: Tensor) -> Sequence[Tensor]:
        leaves = stack.leaves(None)
        factors, head = stack.parts(leaves, None)
        own = {name: leaf for name, leaf in leaves.items() if name.startswith(WEIGHTS)}
        losses = loss_of_clients(backbone, course, task, {**batch, anatomy.family.inputs: images})
        loss = losses({**factors, **own}, head).sum()
        trained = [leaves[name] for name in sent.tensors()]
        return torch.autograd.grad(loss, trained, create_graph=True, materialize_grads=True)

    return gradients


def matched(
    gradients_of: GradientsOf,
    seen: Sequence[Tensor],
    start: Tensor,
    *,
    steps: int = 300,
    learning_rate: float = 0.1,
    smoothness: float = 1e-2,
) -> Tensor:
    """Images [N, C, H, W] whose gradients point where those that were seen do; N of them at once.

    Args:
        gradients_of: of images, with a graph.
        seen: in the same order and shapes; their length does not matter.
        start: of the search, its values within its own range from then on.
        steps: of the search.
        learning_rate: of its first steps, in the images' units.
        smoothness: weight of the mean absolute difference of neighbouring pixels.
    """
    low, high = float(start.min()), float(start.max())
    images = start.clone().requires_grad_()
    search = torch.optim.Adam([images], lr=learning_rate)
    falls = torch.optim.lr_scheduler.MultiStepLR(search, [int(steps * part) for part in _FALLS], gamma=0.1)
    for _ in range(steps):
        loss = _distance(gradients_of(images), seen) + smoothness * _variation(images)
        (gradient,) = torch.autograd.grad(loss, [images])
        images.grad = gradient.sign()
        search.step()
        falls.step()
        with torch.no_grad():
            images.clamp_(low, high)
    return images.detach()


def _distance(own: Sequence[Tensor], seen: Sequence[Tensor]) -> Tensor:
    along = torch.stack([(a * b).sum() for a, b in zip(own, seen, strict=True)]).sum()
    squares = [torch.stack([t.square().sum() for t in side]).sum() for side in (own, seen)]
    return 1 - along / (squares[0] * squares[1]).sqrt().clamp(min=1e-20)


def _variation(images: Tensor) -> Tensor:
    return (images.diff(dim=-1).abs().mean() + images.diff(dim=-2).abs().mean()) / 2
