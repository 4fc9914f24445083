"""Activation inversion: it finds all words where it must, none where it cannot, less behind noise."""

import numpy as np
import pytest
import torch

from fedray.attacks.inversion import Sent, as_sent, commonest, fitted, guesses, token_recovery
from fedray.errors import ConfigError
from fedray.model.anatomy import dissect
from fedray.training.optimizer import LocalOptimizer
from shop import CONFIGS, VOCABULARY, build, drawn

SGD = LocalOptimizer(optim="sgd", learning_rate=0.05)
KNOWN, PRIVATE = np.arange(0, 40), np.arange(40, 60)


def shop(family):
    workshop = build(family, [60], SGD)
    return workshop.backbones["fp32"].anatomy, workshop.pool


def test_of_states_that_are_a_linear_image_of_the_words_every_word_is_found():
    torch.manual_seed(0)
    words, turn = torch.randn(50, 8), torch.randn(8, 8)
    known, private = torch.randint(50, (400,)), torch.randint(50, (100,))
    decoder = fitted(words[known] @ turn + 3.0, words[known], ridge=1e-9)
    assert torch.equal(guesses(words[private] @ turn + 3.0, decoder, words), private)


def test_of_states_that_have_nothing_of_the_words_no_more_is_found_than_by_guessing():
    torch.manual_seed(0)
    words, tokens = torch.randn(50, 8), torch.randint(50, (400,))
    decoder = fitted(torch.randn(400, 8), words[tokens])
    found = guesses(torch.randn(400, 8), decoder, words)
    assert float((found == torch.randint(50, (400,))).float().mean()) < 0.06


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_without_a_block_between_nearly_every_token_is_found_and_deeper_cuts_give_less_away(family):
    anatomy, pool = shop(family)
    found = token_recovery(anatomy, pool, KNOWN, PRIVATE)
    assert list(found) == [0, 1, 2, 3, 4]
    assert found[0] > 0.85
    assert found[0] >= found[4]
    assert found[0] > 5 * commonest(pool, KNOWN, PRIVATE)


def test_rows_of_noise_find_what_the_commonest_word_finds():
    anatomy, pool = shop("bert")
    drowned = token_recovery(anatomy, pool, KNOWN, PRIVATE, Sent(noise=1e4))
    assert max(drowned.values()) < 0.1
    assert commonest(pool, KNOWN, PRIVATE) < 3 / VOCABULARY


def test_who_has_other_weights_than_the_client_finds_no_more_than_by_guessing():
    anatomy, pool = shop("bert")
    torch.manual_seed(1)
    stranger = dissect(drawn(CONFIGS["bert"], "bert"))
    found = token_recovery(anatomy, pool, KNOWN, PRIVATE, attackers=stranger)
    assert max(found.values()) < 0.1
    assert token_recovery(stranger, pool, KNOWN, PRIVATE)[0] > 0.5


def test_codecs_and_noise_take_away_and_draw_the_same_every_time():
    anatomy, pool = shop("bert")
    plain = token_recovery(anatomy, pool, KNOWN, PRIVATE)
    for sent in (Sent(codec="top10"), Sent(noise=1.0), Sent(codec="int4", seed=3)):
        found = token_recovery(anatomy, pool, KNOWN, PRIVATE, sent)
        assert found[4] <= plain[4] + 0.02
        assert found == token_recovery(anatomy, pool, KNOWN, PRIVATE, sent)
    states = torch.randn(4, 8)
    assert not torch.equal(as_sent(states, Sent(noise=1.0), 1), as_sent(states, Sent(noise=1.0), 2))
    assert as_sent(states, Sent(), 1) is states


def test_images_and_empty_rows_are_refused():
    anatomy, pool = shop("vit")
    with pytest.raises(ConfigError, match="no words go into this vit model"):
        token_recovery(anatomy, pool, KNOWN, PRIVATE)
    anatomy, pool = shop("bert")
    with pytest.raises(ConfigError, match="rows to learn from and rows to find, and one of them has none"):
        token_recovery(anatomy, pool, KNOWN, PRIVATE[:0])
