"""Activation inversion at a cut: the words of a row from the hidden states that a client sends up.

The attacker knows the pretrained model, or has another in its place, and has rows of its own. For each cut it
fits a linear decoder from hidden states to word embeddings (ridge regression), and takes the word whose
embedding points nearest. Stronger decoders find more: what is found here is a lower bound on what a cut gives
away. At cut 0 hidden states are the embeddings themselves, so nearly every word must be found; of random
states, or by who has other weights, nothing but the commonest words.

Letters of shapes: X real tokens, D hidden width, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from fedray.adapter import Adapter
from fedray.attacks.depths import by_depth
from fedray.errors import ConfigError
from fedray.mechanism import CutNoise
from fedray.model.anatomy import Anatomy
from fedray.model.codecs import decode, encode
from fedray.seeds import derive_seed
from fedray.training.boundary import protected
from fedray.training.data import Encoded, Rows

# Tokens looked up at once: a table of these by the vocabulary is what the attack holds at most.
_LOOKED_UP = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """How hidden states leave a client.

    Attributes:
        codec: that they are coded with (`fedray.model.codecs`).
        noise: standard deviation of Gaussian noise on them, in that of the states themselves.
        protection: what clients do to them before that, as a run's configuration has it.
        adapter: LoRA of the client's, which the attacker does not have; None before round 1.
        seed: of all.
    """

    codec: str = "none"
    noise: float = 0.0
    protection: CutNoise | None = None
    adapter: Adapter | None = None
    seed: int = 0


def token_recovery(
    anatomy: Anatomy,
    pool: Encoded,
    known: Rows,
    private: Rows,
    sent: Sent | None = None,
    attackers: Anatomy | None = None,
) -> dict[int, float]:
    """Of each cut, from 0 to all blocks, the share of private tokens that the attacker finds.

    Args:
        anatomy: of the pretrained model, with its weights.
        pool: all rows.
        known: rows that the attacker has itself, to fit its decoders on.
        private: rows whose hidden states it is sent.
        sent: how these are sent; as they are if absent.
        attackers: of the model that the attacker has instead, alike but for its weights; the same if absent.

    Raises:
        ConfigError: for a model of images, or no rows on one side.
    """
    way, had = sent or Sent(), attackers or anatomy
    words = words_of(had)
    theirs, own = by_depth(had, pool, known), by_depth(anatomy, pool, private, way.adapter)
    found = {}
    for cut in range(anatomy.num_blocks + 1):
        decoder = fitted(as_sent(theirs.states[cut], way, cut), words[theirs.inputs])
        guessed = guesses(as_sent(own.states[cut], way, cut), decoder, words)
        found[cut] = float((guessed == own.inputs).float().mean())
    return found


def fitted(states: Tensor, wanted: Tensor, ridge: float = 1e-3) -> Tensor:
    """The linear decoder, [D + 1, P], of least squares with a ridge relative to the states' size.

    Args:
        states: [X, D].
        wanted: what it is to give, such as word embeddings, [X, P].
        ridge: times the mean diagonal of the normal equations.
    """
    x = _with_one(states.double())
    square = x.T @ x
    damped = square + ridge * square.diagonal().mean() * torch.eye(len(square), dtype=torch.float64)
    decoder: Tensor = torch.linalg.solve(damped, x.T @ wanted.double())
    return decoder


def guesses(states: Tensor, decoder: Tensor, words: Tensor) -> Tensor:
    """The word whose embedding points nearest to what is decoded, [X]."""
    return torch.cat([part.argmax(1) for part in likeness(decoded_by(states, decoder), words)])


def likeness(vectors: Tensor, words: Tensor) -> Iterator[Tensor]:
    """How nearly vectors [X, D] point to each word's embedding: cosines [some, V], until all have come."""
    directions = normalize(words, dim=1)
    for part in normalize(vectors, dim=1).split(_LOOKED_UP):
        yield part @ directions.T


def words_of(anatomy: Anatomy) -> Tensor:
    """The embeddings of all words, [V, D] in float32. Raises ConfigError for a model of images."""
    if anatomy.family.words is None:
        raise ConfigError(
            f"Token recovery is of words, and no words go into this {anatomy.model.config.model_type} model."
        )
    return anatomy.backbone.get_submodule(anatomy.family.words).get_parameter("weight").detach().float()


def decoded_by(states: Tensor, decoder: Tensor) -> Tensor:
    """What a decoder makes of hidden states [X, D]; float32."""
    return (_with_one(states.double()) @ decoder).float()


def as_sent(states: Tensor, sent: Sent, cut: int) -> Tensor:
    """Hidden states [X, D] as they arrive: protected, with noise, and coded."""
    seed = derive_seed(sent.seed, "attacked cut", cut)
    states = protected(states, sent.protection, seed)
    if sent.noise:
        random = torch.Generator().manual_seed(derive_seed(sent.seed, "noise on a cut", cut))
        states = states + sent.noise * states.std() * torch.randn(states.shape, generator=random)
    return states if sent.codec == "none" else decode(encode(states, sent.codec, seed))


def _with_one(states: Tensor) -> Tensor:
    return torch.cat([states, states.new_ones(len(states), 1)], dim=1)


def commonest(pool: Encoded, known: Rows, private: Rows) -> float:
    """What always saying the commonest of the known tokens finds: what an attack must pass to be one."""
    ids = pool.lists["input_ids"]
    spans = [
        np.concatenate([ids[pool.starts[row] : pool.starts[row] + pool.lengths[row]] for row in rows])
        for rows in (known, private)
    ]
    values, counts = np.unique(spans[0], return_counts=True)
    return float((spans[1] == values[counts.argmax()]).mean())
