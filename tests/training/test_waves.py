"""Waves: every step once, in its client's order, with room for it."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.training.waves import plan_waves

LENGTHS = st.lists(st.lists(st.sampled_from([8, 16, 24, 64]), min_size=1, max_size=6), min_size=1, max_size=7)


@given(LENGTHS, st.integers(1, 8), st.integers(1, 2000))
@settings(max_examples=100, deadline=None)
def test_every_client_takes_its_steps_once_and_in_order_and_none_is_cut(lengths, rows, tokens):
    waves = plan_waves(lengths, rows, tokens)
    taken = [0] * len(lengths)
    for wave in waves:
        assert wave.clients == tuple(sorted(set(wave.clients)))
        assert len(wave.clients) == 1 or len(wave.clients) * rows * wave.tokens <= tokens
        following = [lengths[client][taken[client]] for client in wave.clients]
        assert wave.tokens == max(following)
        for client in wave.clients:
            taken[client] += 1
    assert taken == [len(own) for own in lengths]
    assert waves == plan_waves(lengths, rows, tokens)


def test_clients_of_like_length_ride_together_and_finish_together():
    # Two long and two short clients, two seats: no short row is padded to a long one.
    waves = plan_waves([[64, 64], [8, 8], [64, 64], [8, 8]], 1, 128)
    assert {(wave.clients, wave.tokens) for wave in waves} == {((0, 2), 64), ((1, 3), 8)}
    assert sum(len(wave.clients) * wave.tokens for wave in waves) == 4 * 64 + 4 * 8


def test_who_has_most_steps_left_leads_so_that_nobody_is_left_alone():
    waves = plan_waves([[8], [8], [8, 8, 8], [8]], 1, 16)
    assert [wave.clients for wave in waves] == [(0, 2), (1, 2), (2, 3)]
