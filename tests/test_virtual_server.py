"""The declared server: what a sweep takes and who has room, worked by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.cost import ServerShare
from fedray.errors import ConfigError
from fedray.virtual_server import VirtualServer
from travel import ride_seconds


def server_of(**changes):
    """Two shards of 50 FLOP/s and 500 bytes, 400 bits a second between them; four blocks of 100 bytes."""
    facts = {
        "num_shards": 2,
        "flops_per_s": 50.0,
        "memory_bytes": 500,
        "interconnect_bps": 400.0,
        "watts": 10.0,
        "block_bytes": (100, 100, 100, 100),
    }
    return VirtualServer(**(facts | changes))


def share_of(activation_bytes, adapter_bytes=0):
    return ServerShare(
        flops=1,
        activation_bytes=activation_bytes,
        adapter_bytes=adapter_bytes,
        first_block=0,
        end_block=4,
    )


def test_a_sweep_takes_its_arithmetic_on_all_shards_or_its_gathering_whichever_is_longer():
    # 1000 FLOPs at 2 x 50 FLOP/s. Each shard lacks half of 300 bytes, up and down: 300 bytes at 50 a second.
    server = server_of()
    assert ride_seconds(server, 1000, 1) == 10
    assert ride_seconds(server, 100, 1) == 6
    assert ride_seconds(server, 100, 0) == 8


def test_a_single_shard_gathers_nothing():
    assert ride_seconds(server_of(num_shards=1), 0, 0) == 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 3)), min_size=1, max_size=6),
    st.tuples(st.integers(0, 2000), st.integers(0, 3)),
)
def test_one_more_rider_never_makes_a_sweep_shorter_and_a_sweep_never_longer_than_one_for_each(riders, more):
    server = server_of()

    def together(aboard):
        return ride_seconds(server, sum(f for f, _ in aboard), min(cut for _, cut in aboard))

    assert together([*riders, more]) >= together(riders)
    one_by_one = sum(together([rider]) for rider in riders)
    assert together(riders) <= one_by_one * (1 + 1e-12)


def test_the_room_is_what_the_blocks_leave_of_all_shards():
    assert server_of().room_bytes == 600


def test_blocks_that_leave_no_memory_are_refused_with_the_numbers():
    with pytest.raises(
        ConfigError, match=r"take 400 B and leave no memory .* 2 shards of 200 B; raise server\.num_shards"
    ):
        server_of(memory_bytes=200)


def test_clients_are_admitted_in_order_and_a_small_one_may_fit_behind_a_large_one_that_did_not():
    # 600 bytes of room: 300 + 100, then 250 do not fit, 200 do; who has no cut needs none.
    shares = [share_of(300, 100), share_of(200, 50), None, share_of(100, 100), share_of(1)]
    assert server_of().refused(shares) == {
        1: "needs 250 B on the server, which has 600 B beside its blocks, 400 B of them taken",
        4: "needs 1 B on the server, which has 600 B beside its blocks, 600 B of them taken",
    }


def test_who_is_on_the_way_already_takes_room_from_who_comes():
    aboard = [share_of(300, 100), share_of(50, 50)]
    assert server_of().left_bytes(aboard) == 100
    assert server_of().refused([share_of(100), share_of(1)], aboard) == {
        1: "needs 1 B on the server, which has 600 B beside its blocks, 600 B of them taken",
    }
    # In a queue the newcomer's activations may take what theirs do.
    queue = server_of(order="queue")
    assert queue.left_bytes(aboard) == 450
    assert set(queue.refused([share_of(400, 50), share_of(1, 1)], aboard)) == {1}


def test_a_shared_adapter_is_held_once():
    shares = [share_of(200, 200), share_of(200, 100), share_of(1, 0)]
    assert set(server_of().refused(shares)) == {1}
    assert set(server_of(mode="shared").refused(shares)) == {2}


def test_in_a_queue_one_clients_activations_are_alive_at_a_time():
    shares = [share_of(400, 50), share_of(500, 50), share_of(450, 60)]
    assert set(server_of().refused(shares)) == {1, 2}
    # 500 and three adapters of 160 are 660; two of 100 are 600.
    assert set(server_of(order="queue").refused(shares)) == {2}
