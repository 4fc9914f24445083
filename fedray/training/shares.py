"""One adapter on the two sides of a cut: what the client trains, and what the server trains for it."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from fedray.adapter import Adapter, Factors, auxiliary, is_auxiliary
from fedray.assignment import Assignment
from fedray.model.anatomy import Anatomy


def with_own_heads(assignment: Assignment, adapter: Adapter) -> Adapter:
    """Without the auxiliary heads of other cuts."""
    own = (auxiliary(assignment.cut),) if assignment.local_loss else ()
    kept = {n: t for n, t in adapter.head.items() if not is_auxiliary(n) or n.startswith(own)}
    return replace(adapter, head=kept)


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


def joined(client: Adapter, server: Adapter) -> Adapter:
    """Both shares of one adapter together again."""
    return Adapter(factors={**client.factors, **server.factors}, head={**client.head, **server.head})


def in_blocks(
    anatomy: Anatomy, factors: Mapping[str, Factors], blocks: Collection[int]
) -> dict[str, Factors]:
    """The factors of these blocks' sites."""
    paths = tuple(anatomy.block_path(block) for block in blocks)
    return {site: value for site, value in factors.items() if site.startswith(paths)}
