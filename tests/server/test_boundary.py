"""What crosses a cut, looked at message by message: under a tail nothing that tells a label or a token."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from fedray.model.codecs import decode
from fedray.server.in_process import InProcessServer
from fedray.server.lockstep import run_lockstep
from fedray.training.boundary import Message, PackMessages
from fedray.training.client_half import PackHalves
from fedray.training.packs import form_packs
from shop import BLOCKS, assign, build, job
from split_shop import SGD, cut_at, in_process, targets_of


class Tapped:
    """Everything that goes up and comes down, by client, in order."""

    def __init__(self, clients: PackHalves, server: InProcessServer) -> None:
        self.clients, self.server = clients, server
        self.up: dict[int, list[Message]] = {}
        self.down: dict[int, list[Message]] = {}

    def _note(self, where: dict[int, list[Message]], messages: PackMessages) -> PackMessages:
        for by_client in messages.values():
            for client, message in by_client.items():
                where.setdefault(client, []).append(message)
        return messages

    def ascend(self, number: int) -> PackMessages:
        return self._note(self.up, self.clients.ascend(number))

    def turn(self, exits: PackMessages) -> PackMessages:
        return self._note(self.up, self.clients.turn(self._note(self.down, exits)))

    def descend(self, down: PackMessages) -> Mapping[int, float]:
        return self.clients.descend(self._note(self.down, down))

    def finish(self):
        return self.clients.finish()


def tapped(family: str, tail: int) -> tuple[Tapped, object]:
    workshop = build(family, [6, 5], SGD)
    work = replace(cut_at(assign(family, BLOCKS, 2), 1, tail), batch_size=3)
    packs = dict(enumerate(form_packs([job(workshop, family, c, work) for c in range(2)], 8)))
    clients = PackHalves(workshop, packs, targets_of(workshop), clips_as_one=True)
    server = in_process(workshop, packs, num_shards=1)
    tap = Tapped(clients, server)
    run_lockstep(tap, server, "sweep", shared=False)
    return tap, workshop


@pytest.mark.parametrize("family", ["bert", "llama", "vit"])
def test_under_a_tail_no_label_and_no_token_crosses(family: str) -> None:
    tap, workshop = tapped(family, tail=1)
    for client, messages in tap.up.items():
        rows = workshop.partitions[client]
        assert len(messages) == 2 * 2  # two steps, hidden states and the gradient of the server's
        for message in messages:
            assert not message.token_targets
            assert not message.row_targets
            assert message.states is not None
            sent = decode(message.states)
            assert sent.is_floating_point()
            assert sent.shape[1] == 16
        tokens = sum(len(decode(message.states)) for message in messages[::2])
        assert tokens == int(workshop.pool.lengths[rows].sum())
    for messages in tap.down.values():
        assert all(not m.token_targets and not m.row_targets and m.lengths is None for m in messages)


@pytest.mark.parametrize("family", ["bert", "vit"])
def test_without_a_tail_a_label_goes_up_and_nothing_else(family: str) -> None:
    tap, workshop = tapped(family, tail=0)
    for client, messages in tap.up.items():
        labels = torch.cat([message.row_targets["label"] for message in messages])
        own = workshop.partitions[client]
        assert sorted(labels.tolist()) == sorted(workshop.pool.numbers["label"][own].tolist())
        assert all(set(m.row_targets) == {"label"} and not m.token_targets for m in messages)


def test_without_a_tail_the_tokens_that_a_decoder_is_to_predict_go_up() -> None:
    tap, _ = tapped("llama", tail=0)
    sent = [message for messages in tap.up.values() for message in messages]
    assert all(set(m.token_targets) == {"input_ids"} and not m.row_targets for m in sent)
