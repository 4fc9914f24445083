"""One adapter on the two sides of a cut: the client's share, and what the server runs for it."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from fedray.adapter import Adapter, Factors, auxiliary, exit_head, is_auxiliary, is_of_an_exit
from fedray.assignment import Assignment
from fedray.exits import has_last_head
from fedray.model.anatomy import Anatomy


def with_own_heads(assignment: Assignment, adapter: Adapter) -> Adapter:
    """With the heads that the client has alone: none at other cuts or exits than its own."""
    own = tuple(prefix for prefix in head_prefixes(assignment) if prefix)
    last = has_last_head(assignment.exits, assignment.cut)
    kept = {
        name: tensor
        for name, tensor in adapter.head.items()
        if name.startswith(own) or (last and not is_auxiliary(name) and not is_of_an_exit(name))
    }
    return replace(adapter, head=kept)


def head_prefixes(assignment: Assignment) -> tuple[str, ...]:
    """What the names of the client's heads start with; the last one's with nothing."""
    last = ("",) if has_last_head(assignment.exits, assignment.cut) else ()
    at_cut = (auxiliary(assignment.cut),) if assignment.local_loss else ()
    return (*last, *at_cut, *map(exit_head, assignment.exits))


def client_share(anatomy: Anatomy, assignment: Assignment, adapter: Adapter) -> Adapter:
    """Factors of the client's own blocks, and the heads it keeps: under a tail, or at its cut.

    All of the adapter without a cut.
    """
    if not assignment.split:
        return adapter
    own = assignment.client_blocks(anatomy.num_blocks)
    head = {n: t for n, t in adapter.head.items() if is_auxiliary(n) or assignment.tail}
    return Adapter(factors=in_blocks(anatomy, adapter.factors, own), head=head)


def server_share(anatomy: Anatomy, assignment: Assignment, adapter: Adapter) -> Adapter:
    """Factors of the blocks the server runs, and the head where it lies there; nothing without a cut."""
    if not assignment.split:
        return Adapter()
    theirs = assignment.server_blocks(anatomy.num_blocks)
    head = {} if assignment.tail else {n: t for n, t in adapter.head.items() if not is_auxiliary(n)}
    return Adapter(factors=in_blocks(anatomy, adapter.factors, theirs), head=head)


def learnt_above(anatomy: Anatomy, assignment: Assignment, adapter: Adapter) -> Adapter:
    """What the server trains for the client: its share, but nothing of a black-box client's."""
    return Adapter() if assignment.is_black_box else server_share(anatomy, assignment, adapter)


def joined(client: Adapter, server: Adapter) -> Adapter:
    """Both shares of one adapter together again."""
    return Adapter(factors={**client.factors, **server.factors}, head={**client.head, **server.head})


def in_blocks(
    anatomy: Anatomy, factors: Mapping[str, Factors], blocks: Collection[int]
) -> dict[str, Factors]:
    """The factors of these blocks' sites."""
    paths = tuple(anatomy.block_path(block) for block in blocks)
    return {site: value for site, value in factors.items() if site.startswith(paths)}
