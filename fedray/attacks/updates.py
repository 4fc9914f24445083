"""What one update gives away exactly, by arithmetic: labels, what a head reads, and words.

With plain SGD and one local step an update is the negative gradient times the learning rate, so it has the
gradient's directions; clipping by norm leaves these as they are. AdamW's first step is the gradient's sign
alone, and more steps are a sum of gradients: then what is here finds less, or nothing.

Letters of shapes: K labels, D hidden width, V vocabulary, R rank, I a linear's input width, X tokens,
N rows, T tokens of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedray.errors import ConfigError
from fedray.model.anatomy import Anatomy
from fedray.training.task import Batch

# Words whose inputs are looked up at once, at every place of a row.
_LOOKED_UP = 512
# Of the largest singular value: below it is what rounding leaves.
_TOLERANCE = 1e-4
# What lies outside a span that holds everything, relative to that: the root of a square's rounding.
_ROUNDED = 1e-3


def classes_in(bias: Tensor) -> tuple[int, ...]:
    """Classes that a batch surely has, from the gradient [K] of a head's bias under cross entropy.

    An entry is the mean over rows of what the model gave a class, less its share of the rows, so it is
    negative for none that is not there. Of one row that is its label; of several some of theirs.
    """
    return tuple(torch.nonzero(bias < 0).flatten().tolist())


def read_by_head(weight: Tensor, bias: Tensor) -> Tensor:
    """What a head read of the one row of a batch, [D], from its gradients [K, D] and [K], exactly.

    Each row of the weight's gradient is what was read times the bias's entry. Of several rows it is their
    mean, weighted by a class's errors.
    """
    strongest = int(bias.abs().argmax())
    return weight[strongest] / bias[strongest]


def words_in(embedding: Tensor) -> tuple[int, ...]:
    """The words of a batch, by id, from the gradient [V, D] of an embedding that is trained and not tied.

    A word that no row has keeps its vector; no batch hides a word.
    """
    return tuple(torch.nonzero(embedding.abs().amax(1) > 0).flatten().tolist())


def most_moved(embedding: Tensor, count: int) -> tuple[int, ...]:
    """As `words_in` where noise, a codec or decay has moved every word: the ``count`` that moved furthest."""
    return tuple(embedding.norm(dim=1).topk(min(count, len(embedding))).indices.tolist())


def readers(anatomy: Anatomy) -> list[str]:
    """The linears of the first block that read what enters its attention, which is each token's matter alone.

    Raises:
        ConfigError: for a model of images.
    """
    _refuse_images(anatomy)
    sites = {module: site for site, module in anatomy.linears(0).items()}
    read: dict[str, Tensor] = {}

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        read[sites[module]] = inputs[0]

    hooks = [module.register_forward_pre_hook(look) for module in sites]
    ids = torch.zeros(1, 2, dtype=torch.int64, device=next(anatomy.model.parameters()).device)
    try:
        with torch.no_grad():
            flow = anatomy.stem(ids, torch.ones_like(ids))
            anatomy.block(0, flow.hidden, flow.context)
    finally:
        for hook in hooks:
            hook.remove()
    first = next(iter(read.values()))
    return [site for site, tensor in read.items() if tensor is first]


def span_of(gradients: Sequence[Tensor], tolerance: float = _TOLERANCE) -> Tensor:
    """An orthonormal basis [S, I] of the rows of gradients [R, I] of what multiplies the same inputs.

    Both a linear's weight and LoRA's A have gradients whose rows are sums of inputs, so the basis spans a
    part of what the inputs span, and all of it where it has as many dimensions. Empty where no gradient is
    there, as of A while B is zero.

    Args:
        gradients: of A at several sites that read the same, or of weights.
        tolerance: singular values below this times the largest are nothing.
    """
    # Sites are made alike in size, so that the smaller one's rows are not lost under the other's rounding.
    parts = [g.double() / g.double().norm() for g in gradients if bool(g.any())]
    if not parts:
        return torch.zeros(0, gradients[0].shape[1], dtype=torch.float64)
    _, sizes, basis = torch.linalg.svd(torch.cat(parts), full_matrices=False)
    kept: Tensor = basis[sizes > tolerance * sizes[0]]
    return kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What a span check finds.

    Attributes:
        share: of the batch's real tokens, those found at their place.
        dimensions: of the span; with as many as there are unlike tokens each of them lies in it.
        nearness: how far the words that are said lie outside the span, over how far all do: near 0 where they
            stand out and 1 where they do not, which an attacker sees, too.
    """

    share: float
    dimensions: int
    nearness: float


def span_recovery(anatomy: Anatomy, site: str, gradients: Sequence[Tensor], batch: Batch) -> Recovered:
    """Words of a batch from the gradients at a linear of the first block.

    Each word at each place has one vector that the linear reads; of these the attacker takes those nearest to
    the span, as many as there are rows that long (lengths are taken as known). DAGER-style (2405.15586); its
    search over whole sequences is not here.

    Args:
        anatomy: with the weights that the client started from; the stem is not trained.
        site: a linear of the first block, such as ``encoder.layer.0.attention.self.query``.
        gradients: of what multiplies its input: of its weight [O, I] or of LoRA's A [R, I], and of others
            that read the same.
        batch: the truth, ``input_ids`` and ``attention_mask`` [N, T].

    Raises:
        ConfigError: for a model of images, or a site of another block.
    """
    _refuse_images(anatomy)
    if not site.startswith(anatomy.block_path(0)):
        raise ConfigError(
            f"A span check is of what the first block reads, {anatomy.block_path(0)}*, and {site} is of "
            "another; name one of the first."
        )
    return _in_spans(anatomy, site, [(span_of(gradients), None)], batch)[0]


def factor_recovery(
    anatomy: Anatomy,
    site: str,
    gradients: Sequence[Tensor],
    factors: Sequence[tuple[Tensor, Tensor]],
    batch: Batch,
) -> Recovered:
    """The same from gradients of LoRA's A or of its B, by which of the two the words stand out more.

    B has read what a word's vector is under A. So it needs no A that has a gradient: A may be frozen
    (FFA-LoRA), and B may be zero still. There is room for as many unlike tokens as all ranks together.

    Args:
        anatomy: as in `span_recovery`, like ``site`` and ``batch``.
        site: see there.
        gradients: of A, or of whole weights; none where these are frozen.
        factors: of the site and of others that read the same: A [R, I], and the gradient of B [O, R].
        batch: see there.
    """
    spans: list[tuple[Tensor, Tensor | None]] = [(span_of(gradients), None)] if gradients else []
    if factors:
        basis = torch.block_diag(*(span_of([gradient]) for _, gradient in factors))
        spans.append((basis, torch.cat([a for a, _ in factors])))
    return min(_in_spans(anatomy, site, spans, batch), key=lambda way: way.nearness)


def _in_spans(
    anatomy: Anatomy, site: str, spans: Sequence[tuple[Tensor, Tensor | None]], batch: Batch
) -> list[Recovered]:
    """By each span, [S, I] or [S, R] of what is read through a projection [R, I]."""
    ids, real = batch["input_ids"], batch["attention_mask"].bool()
    told = [(basis.float(), through) for basis, through in spans if len(basis)]
    if not told:  # nothing has a gradient, and all words lie as far from nothing
        return [Recovered(share=0.0, dimensions=0, nearness=1.0)]
    every = _distances(anatomy, site, told, ids.shape[1])  # [V, T] each, or [V, 1]
    return [_said(ids, real, own, len(basis)) for own, (basis, _) in zip(every, told, strict=True)]


def _said(ids: Tensor, real: Tensor, distances: Tensor, dimensions: int) -> Recovered:
    """The words nearest to a span at each place of rows [N, T], as many as there are."""
    if distances.shape[1] == 1:
        places, counts = [ids[real]], [len(ids[real].unique())]
    else:
        places = [ids[mask, at] for at, mask in enumerate(real.T)]
        counts = [len(own) for own in places]
    hits, near = 0, 0.0
    for own, count, away in zip(places, counts, distances.T, strict=True):
        said = away.topk(min(count, len(away)), largest=False).indices
        hits += int(torch.isin(own, said).sum())
        near += (float(away[said].mean()) + _ROUNDED) / (float(away.mean()) + _ROUNDED) if count else 0.0
    return Recovered(share=hits / int(real.sum()), dimensions=dimensions, nearness=near / len(places))


def _refuse_images(anatomy: Anatomy) -> None:
    if anatomy.family.words is None:
        raise ConfigError(
            f"A span check is of words, and no words go into this {anatomy.model.config.model_type} model."
        )


@torch.no_grad()
def _distances(
    anatomy: Anatomy, site: str, spans: Sequence[tuple[Tensor, Tensor | None]], num_places: int
) -> list[Tensor]:
    """Of each word at each place what lies outside each span, relative to its vector, [V, T] each."""
    assert anatomy.family.words is not None
    words = len(anatomy.backbone.get_submodule(anatomy.family.words).get_parameter("weight"))
    parts: list[list[Tensor]] = [[] for _ in spans]
    for ids in torch.arange(words).split(_LOOKED_UP):
        read = _read_at(anatomy, site, ids[:, None].expand(-1, num_places))
        if torch.allclose(read[:, 0], read[:, -1]):  # places do not show here, as where they are rotated in
            read = read[:, :1]
        for into, (basis, through) in zip(parts, spans, strict=True):
            vectors = read if through is None else read @ through.T
            whole, inside = vectors.square().sum(-1), (vectors @ basis.T).square().sum(-1)
            into.append(((whole - inside).clamp(min=0) / whole.clamp(min=1e-12)).sqrt())
    return [torch.cat(own) for own in parts]


class _ReadError(Exception):
    """Ends a forward pass at the linear that is asked about."""


def _read_at(anatomy: Anatomy, site: str, ids: Tensor) -> Tensor:
    """What the linear reads of rows of ids [N, T], [N, T, I]; of a first block each token's matter alone."""
    seen: list[Tensor] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])
        raise _ReadError

    hook = anatomy.backbone.get_submodule(site).register_forward_pre_hook(look)
    try:
        flow = anatomy.stem(ids, torch.ones_like(ids))
        anatomy.block(0, flow.hidden, flow.context)
    except _ReadError:
        return seen[0].float()
    finally:
        hook.remove()
    raise AssertionError("a first block reads its linears")
