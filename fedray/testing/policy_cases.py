"""Fleets and menus to try a policy on: drawn ones, and the ends of what there can be."""

from dataclasses import replace

from hypothesis import strategies as st

from fedray.assignment import Assignment
from fedray.errors import ConfigError
from fedray.menu import build_menu
from fedray.testing.play import PolicyCase
from fedray.testing.priced_model import GRID, Client

WHOLE = build_menu(replace(GRID, cuts=()))
CUTS = build_menu(replace(GRID, local_loss=(False, True)))
NARROW = build_menu(replace(GRID, cuts=(), tunings=("lora", "full"), widths=(1.0, 0.5)))
PARTS = build_menu(
    replace(GRID, cuts=(), exits=(1, 2), tunings=("lora", "full"), widths=(1.0, 0.5), width_window="salient")
)
INFERS = build_menu(replace(GRID, cuts=(2,), perturbations=(0, 2), up_codecs=("none", "seeds8")))

# The largest entry of these menus takes 172 bytes with the margin, the smallest 112.
_SMALL, _MIDDLE, _LARGE = 50, 125, 10**8
_FLEETS = (
    (Client(memory_bytes=_LARGE),),  # one client
    (Client(memory_bytes=_SMALL),) * 3,  # none that anything fits
    (Client(memory_bytes=_LARGE),) * 4,  # all that everything fits
    (Client(memory_bytes=_SMALL), Client(memory_bytes=_MIDDLE), Client(memory_bytes=_LARGE)),
    # A million to one, in memory, compute and links.
    (
        Client(memory_bytes=120, flops_per_s=1e-3, bps=1e-2, num_rows=1, num_tokens=1),
        Client(memory_bytes=120 * 10**6, flops_per_s=1e3, bps=1e4, num_rows=400, num_tokens=2400),
    ),
)
EXTREMES = tuple(
    PolicyCase(clients=clients, menu=menu, clients_per_round=len(clients))
    for menu in (WHOLE, CUTS, NARROW, PARTS, INFERS)
    for clients in _FLEETS
)


@st.composite
def clients(draw: st.DrawFn) -> Client:
    """A device near the edge of what fits, mostly, and one far from it now and then."""
    num_rows = draw(st.integers(1, 20))
    return Client(
        memory_bytes=draw(st.one_of(st.integers(90, 200), st.sampled_from([1, _LARGE]))),
        flops_per_s=draw(st.sampled_from([100.0, 5.0, 20.0, 1000.0, 1e-3, 1e9])),
        bps=draw(st.sampled_from([800.0, 8.0, 8e6])),
        rtt_seconds=draw(st.sampled_from([0.1, 0.0, 10.0])),
        # A client's frozen parts take 10 bytes for each block, the stem and the head.
        storage_bytes=draw(st.sampled_from([10**6, 60, 45, 0])),
        num_rows=num_rows,
        num_tokens=num_rows * draw(st.integers(1, 8)),
    )


@st.composite
def menus(draw: st.DrawFn) -> tuple[Assignment, ...]:
    """A grid of some knobs; what a menu refuses is left out."""
    some_ranks = st.lists(st.sampled_from([1, 2, 8]), max_size=3, unique=True).map(tuple)
    ranks = draw(some_ranks)
    knobs = replace(
        GRID,
        ranks=ranks,
        head_only=not ranks or draw(st.booleans()),
        depths=draw(st.sampled_from([("all",), (1,), (2, "all")])),
        batch_sizes=draw(st.sampled_from([(4,), (1, 4)])),
        max_steps=draw(st.sampled_from([None, 3])),
        exits=draw(st.sampled_from([(), (), (2,), (1, 3)])),
    )
    with_cuts = replace(
        knobs,
        cuts=draw(st.lists(st.sampled_from([0, 1, 2, 3]), max_size=3, unique=True).map(tuple)),
        tails=draw(st.sampled_from([(0,), (0, 1)])),
        local_loss=draw(st.sampled_from([(False,), (True,), (False, True)])),
        whole=bool(knobs.exits) or draw(st.booleans()),
    )
    try:
        return build_menu(with_cuts)
    except ConfigError:
        return build_menu(replace(knobs, cuts=()))


@st.composite
def policy_cases(draw: st.DrawFn) -> PolicyCase:
    """One to six clients, of whom some are asked for in a round."""
    fleet = draw(st.lists(clients(), min_size=1, max_size=6))
    return PolicyCase(
        clients=tuple(fleet),
        menu=draw(menus()),
        clients_per_round=draw(st.integers(1, len(fleet))),
        room_bytes=draw(st.sampled_from([10**4, 60, 1])),
        seed=draw(st.integers(0, 1000)),
    )
