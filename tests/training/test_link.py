"""What crosses a link at both ends of a round: bytes, draws, what is owed, and what is refused."""

from dataclasses import replace

import pytest
import safetensors.torch
import torch

from fedray.adapter import Adapter, GlobalState
from fedray.aggregation.presets import PRESETS, make_aggregation
from fedray.assignment import HeadOnly
from fedray.cost import WorkShape
from fedray.errors import ConfigError
from fedray.menu import Grid, build_menu
from fedray.model.update_codecs import leaves_out
from fedray.training.audit import audit
from fedray.training.link import (
    arrived,
    as_received,
    on_its_way,
    refuse_codecs,
    sent_down,
    sent_up,
    without_idle_codecs,
)
from fedray.training.optimizer import LocalOptimizer
from fedray.training.shapes import initial_adapter, site_ranks
from fedray.training.train import form_packs, train_pack
from lone import Case, real, tracer
from shop import BLOCKS, LABELS, TARGETS, assign, build, job
from split_shop import SGD, cut_at, train_split
from tiny_run import assert_same_adapter, assert_same_tensors

CODECS = ("none", "bf16", "int8", "int4", "top10", "rank1")
DELTA_RULES = [name for name in PRESETS if not make_aggregation(name).averages_states]


@pytest.fixture(scope="module")
def workshop():
    return build("bert", [9, 6, 11], SGD)


def work(workshop, client=0, rank=8, **changes):
    return job(workshop, "bert", client, assign("bert", BLOCKS, rank, **changes))


def random_delta(sent, seed, size=1e-2):
    draw = torch.Generator().manual_seed(seed)

    def like(tensor):
        return size * torch.randn(tensor.shape, generator=draw) ** 3

    factors = {s: replace(f, a=like(f.a), b=like(f.b)) for s, f in sent.factors.items()}
    return Adapter(factors=factors, head={n: like(t) for n, t in sent.head.items()})


def padded_sum(into, tensors, sign=1.0):
    """Adds tensors of any rank to sums at the largest one, as rank indices lie."""
    for name, tensor in tensors.items():
        into[name][tuple(map(slice, tensor.shape))] += sign * tensor.double()


# Down.


@pytest.mark.parametrize("codec", CODECS)
def test_a_client_starts_from_what_it_received_in_as_many_bytes_as_crossed(workshop, codec):
    plain = work(workshop, down_codec=codec)
    got = sent_down(workshop.backbones["fp32"].anatomy, plain)
    whole = len(safetensors.torch.save({n: t.contiguous() for n, t in plain.sent.tensors().items()}))
    before, after = plain.sent.tensors(), got.sent.tensors()
    assert list(before) == list(after)
    if codec == "none":
        assert got.sent_bytes == whole
        assert_same_adapter(got.sent, plain.sent)
    else:
        assert got.sent_bytes < whole
        assert any(not torch.equal(after[name], tensor) for name, tensor in before.items())


def test_under_a_cut_only_the_clients_own_share_is_coded(workshop):
    cut = cut_at(assign("bert", BLOCKS, 8, down_codec="int4", up_codec="int4"), 2)
    plain = job(workshop, "bert", 1, cut)
    got = sent_down(workshop.backbones["fp32"].anatomy, plain)
    own = {n for n in plain.sent.tensors() if n.startswith(("encoder.layer.0.", "encoder.layer.1."))}
    moved = {n for n, t in plain.sent.tensors().items() if not torch.equal(t, got.sent.tensors()[n])}
    assert moved == own
    update = train_split(workshop, [got])[1]
    assert {name.rpartition(".")[0] for name in update.coded} == own
    whole = train_split(workshop, [replace(got, assignment=replace(cut, up_codec="none"))])[1]
    ours, theirs = update.delta.tensors(), whole.delta.tensors()
    assert list(ours) == list(theirs)
    assert {name for name in ours if not torch.equal(ours[name], theirs[name])} == own


@pytest.mark.parametrize("rule", DELTA_RULES)
@pytest.mark.parametrize("codec", ["bf16", "int4", "top10", "rank1"])
def test_untrained_clients_move_no_state_whatever_they_received(workshop, rule, codec):
    aggregation, anatomy = make_aggregation(rule), workshop.backbones["fp32"].anatomy
    start = work(workshop, rank=8).sent
    if rule in ("stack", "flora"):
        start = initial_adapter(anatomy, [assign("bert", BLOCKS, 8)], LABELS, 0)
    if aggregation.freezes_a:
        start = replace(start, factors={s: replace(f, train_a=False) for s, f in start.factors.items()})
    state = GlobalState(adapter=start)
    up = codec if aggregation.keeps_rank_indices or not leaves_out(codec) else "int8"
    accumulator = aggregation.start(state)
    for client, rank in enumerate((8, 4)):
        plain = work(workshop, client, rank, down_codec=codec, up_codec=up)
        ranks = site_ranks(anatomy, plain.assignment)
        got = sent_down(anatomy, replace(plain, sent=aggregation.send(state, ranks, client)))
        zeros = random_delta(got.sent, 0, size=0.0)
        delta = arrived(got, sent_up(got, zeros).coded)
        assert not any(t.any() for t in delta.tensors().values())
        accumulator.add(delta, got.sent, 1.0)
    end = accumulator.finish()
    assert end.base_delta == {}
    assert_same_adapter(end.adapter, start)


# Up.


@pytest.mark.parametrize("codec", CODECS)
def test_an_update_travels_coded_and_its_bytes_are_what_safetensors_writes(workshop, codec):
    own = work(workshop, up_codec=codec)
    (update,) = train_pack(workshop, [own])
    travelling = on_its_way(own, update)
    assert travelling.delta is None
    saved = len(safetensors.torch.save({n: t.contiguous() for n, t in travelling.tensors().items()}))
    plain = len(safetensors.torch.save({n: t.contiguous() for n, t in update.delta.tensors().items()}))
    assert saved == plain if codec == "none" else saved < plain
    got = as_received(own, travelling)
    assert list(got.delta.tensors()) == list(update.delta.tensors())
    if codec == "none":
        assert_same_adapter(got.delta, update.delta)
    assert bool(travelling.client_state) is leaves_out(codec)


@pytest.mark.parametrize("codec", ["top1", "top10", "rank1", "int8", "none"])
def test_what_was_decoded_and_what_is_still_owed_sum_to_what_was_trained_whatever_the_ranks(workshop, codec):
    # Six rounds at unlike ranks: what a smaller one does not reach is owed until a larger one comes again.
    largest = work(workshop, rank=8).sent.tensors()
    trained, decoded = ({n: torch.zeros_like(t).double() for n, t in largest.items()} for _ in range(2))
    state = {"head.weight": torch.ones(1)}  # somebody else's
    for number, rank in enumerate((8, 4, 8, 2, 6, 4)):
        # Whatever is owed under top10 is paid in the round in which it sends everything.
        own = replace(work(workshop, rank=rank, up_codec=codec), round=number, client_state=state)
        delta = random_delta(own.sent, number)
        sent = sent_up(own, delta)
        padded_sum(trained, delta.tensors())
        padded_sum(decoded, arrived(own, sent.coded).tensors())
        state = sent.client_state
    assert torch.equal(state["head.weight"], torch.ones(1))
    owed = {name.removeprefix("owed."): t for name, t in state.items() if name.startswith("owed.")}
    assert bool(owed) is leaves_out(codec)
    padded_sum(decoded, owed)
    if codec != "int8":  # unbiased, so nothing is kept of what it rounds
        for name, total in trained.items():
            assert torch.allclose(decoded[name], total, atol=1e-6 * float(total.abs().max())), name


def test_what_is_owed_is_paid_with_the_next_update_that_is_sent_whole(workshop):
    first = work(workshop, up_codec="top1")
    delta = random_delta(first.sent, 1)
    owing = sent_up(first, delta)
    second = replace(work(workshop, up_codec="none"), client_state=owing.client_state)
    paid = sent_up(second, random_delta(second.sent, 2, size=0.0))
    assert paid.client_state == {}
    total = {n: t.clone() for n, t in arrived(first, owing.coded).tensors().items()}
    padded_sum(total, arrived(second, paid.coded).tensors())
    for name, tensor in delta.tensors().items():
        assert torch.allclose(total[name], tensor), name


def test_a_client_owes_nothing_less_for_blocks_that_it_did_not_train(workshop):
    deep = work(workshop, up_codec="top1")
    owing = sent_up(deep, random_delta(deep.sent, 1))
    shallow = job(workshop, "bert", 0, assign("bert", 1, 8, up_codec="top1"))
    after = sent_up(replace(shallow, client_state=owing.client_state), random_delta(shallow.sent, 2))
    frozen = {name for name in owing.client_state if "layer.3." not in name and "head" not in name}
    assert frozen
    for name in frozen:
        assert torch.equal(after.client_state[name], owing.client_state[name])


def test_an_update_that_failed_leaves_what_is_owed_as_it_was(workshop):
    own = work(workshop, up_codec="top10")
    (update,) = train_pack(workshop, [own])
    failed = replace(update, delta=None, message="its loss is nan")
    assert on_its_way(own, failed) == failed
    assert as_received(own, failed).tensors() == {}


# Draws.


def test_a_draw_is_that_of_run_round_client_direction_and_tensor_and_of_nothing_else(workshop):
    own = work(workshop, up_codec="int4", down_codec="int4")
    delta = own.sent  # as good as any
    ours = sent_up(own, delta).coded
    assert_same_tensors(ours, sent_up(own, delta).coded)
    site = next(iter(delta.factors))
    alone = Adapter(factors={site: delta.factors[site]})
    for name, tensor in sent_up(own, alone).coded.items():
        assert torch.equal(tensor, ours[name])
    others = [replace(own, **{name: 9}) for name in ("seed", "round", "client_id", "dispatch")]
    name = f"{site}.lora_A.values"
    drawn = [sent_up(other, delta).coded[name] for other in (own, *others)]
    assert len({tuple(tensor.flatten().tolist()) for tensor in drawn}) == len(drawn)
    down = sent_down(workshop.backbones["fp32"].anatomy, own).sent
    assert not torch.equal(down.factors[site].a, arrived(own, ours).factors[site].a)


def test_how_clients_are_packed_changes_no_draw(workshop):
    # With a learning rate of 0 a delta is zero, so what is decoded is what is owed, by its draws alone.
    still = replace(workshop, optimizer=LocalOptimizer(optim="sgd", learning_rate=0.0))
    jobs = []
    for client in range(3):
        own = work(still, client, up_codec="int4")
        owed = {f"owed.{n}": t for n, t in random_delta(own.sent, client).tensors().items()}
        jobs.append(replace(own, client_state=owed))
    ends = []
    for size in (1, 3):
        sent = {}
        for pack in form_packs(jobs, size):
            for own, update in zip(pack, train_pack(still, pack), strict=True):
                sent[own.client_id] = on_its_way(own, update).coded
        ends.append(sent)
    for client in range(3):
        assert_same_tensors(ends[0][client], ends[1][client])


# What it costs.


@pytest.mark.parametrize("codec", ["int8", "top10", "rank1"])
@pytest.mark.parametrize("cut", [None, 2])
def test_what_crosses_and_what_is_owed_are_in_the_footprint_to_the_byte(codec, cut):
    whole = assign("bert", BLOCKS, 8, up_codec=codec, down_codec="int8", batch_size=2)
    case = Case(
        family="bert",
        assignment=whole if cut is None else cut_at(whole, cut, tail=1),
        shape=WorkShape(rows=2, tokens=32, attention="eager"),
        optimizer=LocalOptimizer(),
    )
    shop, own = real(case)
    trace = tracer(case, shop)
    footprint = trace(case.assignment, case.shape)
    got = sent_down(shop.backbones["fp32"].anatomy, own)
    assert footprint.down_bytes == got.sent_bytes
    blocks = range(BLOCKS) if cut is None else (0, 1, 3)
    named = [f"layer.{block}." for block in blocks] + ["head."]
    delta = random_delta(own.sent, 1)
    mine = Adapter(
        factors={s: f for s, f in delta.factors.items() if any(n in s for n in named)}, head=delta.head
    )
    sent = sent_up(own, mine)
    assert footprint.up_bytes == len(safetensors.torch.save(dict(sent.coded)))
    owed = sum(t.numel() * 4 for t in sent.client_state.values())
    assert bool(owed) is leaves_out(codec)
    plain = replace(case.assignment, up_codec="none", down_codec="none")
    assert footprint.peak_bytes == trace(plain, case.shape).peak_bytes + owed
    assert audit(shop, own).peak_bytes == pytest.approx(footprint.peak_bytes, rel=0.02)
    assert audit(shop, own).peak_bytes - audit(shop, replace(own, assignment=plain)).peak_bytes == owed


# What has no effect, or would not do what it says.


def menu_of(**knobs):
    return build_menu(Grid(num_blocks=BLOCKS, targets=TARGETS["bert"], **knobs))


def test_a_codec_stays_on_a_menu_only_where_it_makes_a_message_shorter(workshop):
    anatomy = workshop.backbones["fp32"].anatomy
    menu = menu_of(ranks=(8,), depths=(1, "all"), cuts=(2,), up_codecs=("none", "int8"), whole=False)
    assert len(menu) == 4
    kept = without_idle_codecs(menu, anatomy, LABELS)
    # Block 3 alone is the server's: the client has no share of the update to code.
    assert [(entry.num_trained_blocks, entry.up_codec) for entry in kept] == [
        (1, "none"),
        (BLOCKS, "int8"),
        (BLOCKS, "none"),
    ]


def test_a_codec_that_makes_nothing_shorter_is_refused_on_a_menu_and_in_a_footprint(workshop):
    anatomy = workshop.backbones["fp32"].anatomy
    for way in ("up", "down"):
        menu = menu_of(ranks=(2,), **{f"{way}_codecs": ("none", "rank16")})
        with pytest.raises(ConfigError, match=f"menu.{way}_codecs lists rank16, and it makes no tensor"):
            without_idle_codecs(menu, anatomy, LABELS)
        case = Case(
            family="bert",
            assignment=assign("bert", BLOCKS, 2, **{f"{way}_codec": "rank16"}),
            shape=WorkShape(rows=1, tokens=8, attention="eager"),
            optimizer=LocalOptimizer(),
        )
        shop, _ = real(case)
        with pytest.raises(ConfigError, match=f"{way}_codec rank16 has no effect .*: none of the 18 tensors"):
            tracer(case, shop)(case.assignment, case.shape)


def test_a_rule_of_states_refuses_a_lossy_way_down_and_one_of_new_factors_what_owes():
    entry = assign("bert", BLOCKS, 8)
    down, up = replace(entry, down_codec="int8"), replace(entry, up_codec="top10")
    for name in PRESETS:
        rule = make_aggregation(name)
        head = replace(entry, adapter=HeadOnly(), up_codec="top10")
        refuse_codecs(rule, [entry, replace(entry, up_codec="int4"), head])
        if name in ("fedit", "hetlora", "rbla", "flexlora", "raflora"):
            with pytest.raises(ConfigError, match=f"averages what they end with.*name: {name}, options"):
                refuse_codecs(rule, [entry, down])
        else:
            refuse_codecs(rule, [down])
        if name in ("product_svd", "flexlora", "flexlora_delta", "raflora", "stack", "flora"):
            with pytest.raises(ConfigError, match=f"'{name}' gives clients other factors"):
                refuse_codecs(rule, [up])
        else:
            refuse_codecs(rule, [up])
