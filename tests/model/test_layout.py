"""Rows without padding: every token comes back to its place, in value and in gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedray.model.layout import Layout, current_layout, laid_out


def mask_of(lengths: list[int], tokens: int) -> Tensor:
    return (torch.arange(tokens) < torch.tensor(lengths)[:, None]).long()


def layout_of(lengths: list[int], tokens: int, clients: int) -> Layout:
    layout = Layout.of(mask_of(lengths, tokens), clients)
    assert layout is not None
    return layout


def test_tokens_stand_end_to_end_by_client() -> None:
    layout = layout_of([2, 1, 1, 1], 4, clients=2)
    rows = torch.arange(16.0).view(4, 4, 1)
    assert layout.counts == (3, 2)
    assert layout.tighten(rows)[0, :, 0].tolist() == [0.0, 1.0, 4.0, 8.0, 12.0]
    positions = torch.arange(4.0).view(1, 4, 1)
    assert layout.at_positions(positions)[0, :, 0].tolist() == [0.0, 1.0, 0.0, 0.0, 0.0]


def test_attention_gets_short_rows_and_long_ones_apart() -> None:
    layout = layout_of([8, 2, 1, 2], 9, clients=2)
    assert [(bench.rows.tolist(), bench.tokens) for bench in layout.benches] == [([1, 2, 3], 2), ([0], 8)]
    short, long = layout.seat(layout.tighten(torch.arange(36.0).view(4, 9, 1)))
    assert short[..., 0].tolist() == [[9.0, 10.0], [18.0, 18.0], [27.0, 28.0]]
    assert long[0, :, 0].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]


def test_rows_of_like_length_stay_together() -> None:
    (bench,) = layout_of([4, 5, 5, 4], 9, clients=2).benches
    assert (bench.rows.tolist(), bench.tokens) == ([0, 1, 2, 3], 5)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=6, max_size=6))
def test_what_leaves_the_benches_is_what_was_seated_in_value_and_gradient(lengths: list[int]) -> None:
    layout = layout_of(lengths, 9, clients=3)
    generator = torch.Generator().manual_seed(sum(lengths))
    tight = torch.randn(1, sum(lengths), 2, generator=generator, requires_grad=True)
    wanted = torch.randn(1, sum(lengths), 2, generator=generator)
    back = layout.unseat(layout.seat(tight))
    assert torch.equal(back, tight)
    (back * wanted).sum().backward()
    assert tight.grad is not None
    assert torch.equal(tight.grad, wanted)


@settings(max_examples=30, deadline=None)
@given(
    clients=st.integers(1, 3),
    lengths=st.lists(st.integers(1, 5), min_size=6, max_size=6),
)
def test_there_and_back_is_the_same_in_value_and_gradient(clients: int, lengths: list[int]) -> None:
    layout = layout_of(lengths, 9, clients)
    real = mask_of(lengths, 9)[..., None]
    generator = torch.Generator().manual_seed(sum(lengths))
    rows = torch.randn(6, 9, 2, generator=generator, requires_grad=True)
    wanted = torch.randn(6, 9, 2, generator=generator)
    back = layout.spread(layout.tighten(rows))
    assert torch.equal(back * real, rows * real)
    (back * wanted).sum().backward()
    assert rows.grad is not None
    assert torch.equal(rows.grad, wanted * real)


def test_padding_holds_nothing_of_another_client() -> None:
    layout = layout_of([3, 1, 1, 1], 4, clients=2)
    rows = torch.zeros(4, 4, 1)
    rows[:2] = float("nan")  # the first client's loss is no number
    assert not layout.spread(layout.tighten(rows))[2:].isnan().any()
    assert not layout.seat(layout.tighten(rows))[0][1:].isnan().any()  # rows 1 to 3; row 0 is long


@pytest.mark.parametrize(
    ("lengths", "skips"), [([4, 4, 4, 4], False), ([4, 3, 4, 4], False), ([2, 3, 1, 4], True)]
)
def test_little_padding_is_not_worth_skipping(lengths: list[int], skips: bool) -> None:
    assert (Layout.of(mask_of(lengths, 4), 2) is not None) is skips


def test_a_layout_holds_for_the_length_of_a_with() -> None:
    layout = layout_of([2, 1, 1, 1], 4, clients=2)
    with laid_out(layout):
        assert current_layout() is layout
        with laid_out(None):
            assert current_layout() is None
        assert current_layout() is layout
    assert current_layout() is None
