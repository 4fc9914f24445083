"""A client's side of a cut without a server: zeros stand for what would come down.

Neither memory nor operations depend on values, so this is what an audit counts of a real client and what a
footprint traces of one on the meta device.
"""

from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fedray.model.codecs import encode
from fedray.training.boundary import Message, Messages
from fedray.training.client_half import ClientHalf
from fedray.training.job import Job
from fedray.training.packed import Observer


class LoneClient:
    """Steps of a `ClientHalf` of one client; what it sends is gone once it is sent."""

    def __init__(
        self, half: ClientHalf, job: Job, counter: TorchDispatchMode, observer: Observer | None
    ) -> None:
        """Args: counter: sees the client's operations and no one else's; ``observer``: the half's own."""
        self._half, self._assignment, self._client = half, job.assignment, job.client_id
        self._counter, self._observer = counter, observer
        self._like: tuple[tuple[int, int], torch.dtype, torch.device] | None = None

    def up(self, number: int) -> bool:
        """Step ``number``, from 0, or look of a black box, up to the cut; false if there is none."""
        with self._counter:
            sent = self._half.ascend(number)
        if not sent:
            return False
        states = sent[self._client].states
        assert states is not None, "whoever is alone goes through its rows once"
        self._like = states.shape, states.dtype, states.tensors["values"].device
        return True

    def turn(self) -> None:
        """Through the tail, if there is one."""
        if self._assignment.tail:
            self._answered(self._half.turn)

    def back(self) -> None:
        """The rest of that step."""
        if self._assignment.is_black_box:
            with self._counter:
                self._half.descend({self._client: Message(loss=0.0)})
        elif self._assignment.gradient_comes_down:
            self._answered(self._half.descend)
        else:
            with self._counter:
                self._half.descend({})

    def _answered(self, part: Callable[[Messages], object]) -> None:
        """What arrives is as large as what was sent, and is held while it is used."""
        assert self._like is not None, "up comes first"
        shape, dtype, device = self._like
        states = encode(torch.zeros(shape, dtype=dtype, device=device), self._assignment.cut_codec, 0)
        if self._observer is not None:
            self._observer.hold(list(states.tensors.values()), "activations")
        with self._counter:
            part({self._client: Message(states=states)})
