"""Words found by search at a cut: all where blocks are known and nothing is noisy, more than by a decoder."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedray.attacks.inversion import Sent, token_recovery
from fedray.attacks.searched import searched_recovery
from fedray.errors import ConfigError
from fedray.model.anatomy import dissect
from fedray.training.shapes import initial_adapter
from shop import BLOCKS, CONFIGS, LABELS, assign, build, drawn, encoded
from split_shop import SGD

CUTS = (0, 4)


@pytest.fixture(scope="module")
def rows():
    """A model that mixes tokens, and of its rows the attacker's own and four that it looks for."""
    torch.manual_seed(0)
    model = drawn(CONFIGS["bert"], "bert")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return dissect(model), encoded(1, 200), np.arange(150), np.arange(150, 154)


@pytest.fixture(scope="module")
def plain(rows):
    return searched_recovery(*rows, Sent(), CUTS)


def test_with_known_blocks_and_no_noise_every_word_is_found_that_a_decoder_misses(rows, plain):
    decoded = token_recovery(*rows)
    assert max(decoded.values()) < 0.95
    assert min(plain.values()) > 0.97


def test_an_adapter_that_the_attacker_does_not_know_hides_words_and_noise_hides_nearly_all(rows, plain):
    anatomy = rows[0]
    sent = initial_adapter(anatomy, [assign("bert", BLOCKS, 4)], LABELS, 0)
    random = torch.Generator().manual_seed(0)
    moved = {site: replace(f, b=torch.randn(f.b.shape, generator=random)) for site, f in sent.factors.items()}
    hidden = searched_recovery(*rows, Sent(adapter=replace(sent, factors=moved)), CUTS)
    assert hidden[0] == plain[0]
    assert hidden[4] < plain[4] - 0.05
    assert searched_recovery(*rows, Sent(noise=1000.0), CUTS[:1])[0] < 0.2


def test_images_are_refused():
    anatomy = build("vit", [4], SGD).backbones["fp32"].anatomy
    with pytest.raises(ConfigError, match="no words go into this vit model"):
        searched_recovery(anatomy, encoded(1, 4), np.arange(2), np.arange(2, 4), Sent(), (0,))
