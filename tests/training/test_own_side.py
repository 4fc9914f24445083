"""A client's own side as part of what it keeps: back to the bit, and told from another assignment's."""

from dataclasses import replace

import pytest
import torch

from fedray.adapter import Adapter
from fedray.training.optimizer import LocalOptimizer
from fedray.training.own_side import OwnSide, base_of, without_own_side
from fedray.training.shares import client_share, server_share
from shop import assign, build, job, start
from split_shop import cut_at


@pytest.fixture(scope="module")
def workshop():
    return build("bert", [6], LocalOptimizer())


def own_side(workshop, cut=2, tail=1, rank=3):
    anatomy, assignment = workshop.backbones["fp32"].anatomy, cut_at(assign("bert", 4, rank), cut, tail)
    begun, now = (
        client_share(anatomy, assignment, start(workshop, "bert", assignment, seed)) for seed in (1, 2)
    )
    scaled = {site: replace(f, scale=1 / 3) for site, f in begun.factors.items()}
    return OwnSide(begun=replace(begun, factors=scaled), now=now)


def test_it_comes_back_to_the_bit_and_leaves_the_rest_alone(workshop):
    own = own_side(workshop)
    state = {"error": torch.ones(2), **own.state()}
    found = OwnSide.of(state)
    for was, now in ((own.begun, found.begun), (own.now, found.now)):
        assert was.tensors().keys() == now.tensors().keys()
        assert all(torch.equal(tensor, now.tensors()[name]) for name, tensor in was.tensors().items())
        assert now.head.keys() == {"weight", "bias"}
    assert {f.scale for f in found.begun.factors.values()} == {1 / 3}
    assert list(without_own_side(state)) == ["error"]
    assert OwnSide.of({"error": torch.ones(2)}) is None
    assert OwnSide(begun=Adapter(), now=Adapter()).state() == {}


def test_it_suits_an_equal_share_alone(workshop):
    own = own_side(workshop)
    assert own.suits(own_side(workshop).now)
    assert not own.suits(own_side(workshop, cut=1).now)
    assert not own.suits(own_side(workshop, tail=0).now)
    assert not own.suits(own_side(workshop, rank=2).now)


def test_an_update_is_a_delta_against_what_was_sent_or_last_begun_or_nothing(workshop):
    anatomy = workshop.backbones["fp32"].anatomy
    work = job(workshop, "bert", 0, cut_at(assign("bert", 4, 3), 2, 1))
    assert base_of(anatomy, work) is work.sent
    theirs = server_share(anatomy, work.assignment, work.sent)
    stays = base_of(anatomy, replace(work, keeps_own_side=True))
    assert stays.tensors().keys() == theirs.tensors().keys()
    own = own_side(workshop)
    after = base_of(anatomy, replace(work, sent=theirs, client_state=own.state()))
    assert after.tensors().keys() == work.sent.tensors().keys()
    for name, tensor in after.tensors().items():
        assert torch.equal(tensor, {**own.begun.tensors(), **theirs.tensors()}[name])
