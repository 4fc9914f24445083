"""Activation inversion by search: words whose hidden states at a cut are those that a client sent up.

The attacker knows the pretrained blocks below the cut, and not what the client's adapter makes of them. From
what the linear decoder says (`fedray.attacks.inversion`) it goes from place to place of a row, tries words
nearest to what is decoded there, and keeps the one with which the blocks give most nearly what was seen; and
again, for a word shows in its neighbours' states, too. It needs no gradient, and never ends further from what
was seen than it began. (Moving embeddings by gradient and taking the nearest words took longer and found no
more than the decoder behind six blocks of MiniLM.)

Letters of shapes: N rows, T tokens, X real tokens, D hidden width, K candidates.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from fedray.attacks.depths import by_depth
from fedray.attacks.inversion import Sent, as_sent, decoded_by, fitted, likeness, words_of
from fedray.model.anatomy import Anatomy
from fedray.training.boundary import padded_tokens
from fedray.training.data import Encoded, Rows
from fedray.training.packed import Backbone, Course, Passage

# Words that are tried at a place, and times that each place is tried.
_CANDIDATES, _SWEEPS = 16, 2
# Rows that are searched for side by side.
_ROWS = 16


def searched_recovery(
    anatomy: Anatomy,
    pool: Encoded,
    known: Rows,
    private: Rows,
    sent: Sent,
    cuts: Iterable[int],
) -> dict[int, float]:
    """Of each of these cuts the share of private tokens that a search finds.

    Args:
        anatomy: of the pretrained model, with its weights.
        pool: all rows.
        known: rows that the attacker has itself, for the decoder that the search starts from.
        private: rows whose hidden states it is sent.
        sent: how these are sent.
        cuts: from 0 to all blocks.

    Raises:
        ConfigError: for a model of images, or no rows on one side.
    """
    words, backbone = words_of(anatomy), Backbone.of(anatomy, [])
    theirs, own = by_depth(anatomy, pool, known), by_depth(anatomy, pool, private, sent.adapter)
    lengths, found = torch.from_numpy(pool.lengths[own.rows]), {}
    sizes = [int(some.sum()) for some in lengths.split(_ROWS)]
    for cut in cuts:
        decoder = fitted(as_sent(theirs.states[cut], sent, cut), words[theirs.inputs])
        seen = as_sent(own.states[cut], sent, cut)
        nearest = _candidates(decoded_by(seen, decoder), words)
        parts = zip(lengths.split(_ROWS), seen.split(sizes), nearest.split(sizes), strict=True)
        said = torch.cat([_searched(backbone, cut, *part) for part in parts])
        found[cut] = float((said == own.inputs).float().mean())
    return found


def _candidates(decoded: Tensor, words: Tensor) -> Tensor:
    """The words that point nearest to what is decoded, the nearest first, [X, K]."""
    count = min(_CANDIDATES, len(words))
    return torch.cat([part.topk(count).indices for part in likeness(decoded, words)])


@torch.no_grad()
def _searched(backbone: Backbone, cut: int, lengths: Tensor, seen: Tensor, candidates: Tensor) -> Tensor:
    """Word ids [X] of some rows for their hidden states [X, D], among the candidates [X, K]."""
    shape, count = (len(lengths), int(lengths.max())), candidates.shape[1]
    mask = (torch.arange(shape[1]) < lengths[:, None]).to(torch.int64)
    wanted, tried = padded_tokens(seen, lengths, shape), padded_tokens(candidates, lengths, shape)
    said = tried[:, :, 0].clone()
    for _ in range(_SWEEPS):
        for place in range(shape[1]):
            at = torch.nonzero(lengths > place).flatten()
            variants = said[at].repeat_interleave(count, dim=0)
            variants[:, place] = tried[at, place].flatten()
            states = _states(backbone, cut, variants, mask[at].repeat_interleave(count, dim=0))
            away = (states.view(len(at), count, *states.shape[1:]) - wanted[at, None]).square().sum(-1)
            best = (away * mask[at, None]).sum(-1).argmin(1)
            said[at, place] = tried[at, place].gather(1, best[:, None]).flatten()
    return said[mask.bool()]


def _states(backbone: Backbone, cut: int, ids: Tensor, mask: Tensor) -> Tensor:
    """Hidden states at a cut of the pretrained model, [N, T, D], of rows of ids [N, T]."""
    flow = backbone.anatomy.stem(ids, mask)
    if not cut:
        return flow.hidden.float()
    course = Course(blocks=tuple(range(cut)))
    passage = Passage(backbone, course, {}, flow.context, None)
    return passage.through(flow.hidden).float()
