"""Images from hidden states: all comes back where it must, and no more than the mean from noise."""

import numpy as np
import pytest
import torch

from fedray.attacks.inversion import Sent
from fedray.attacks.pictures import image_recovery, mean_image, patches_of, psnr
from fedray.errors import ConfigError
from fedray.model.anatomy import dissect
from fedray.training.optimizer import LocalOptimizer
from shop import CONFIGS, build, drawn

KNOWN, PRIVATE = np.arange(0, 60), np.arange(60, 80)


@pytest.fixture(scope="module")
def vit():
    workshop = build("vit", [80], LocalOptimizer(optim="sgd"))
    return workshop.backbones["fp32"].anatomy, workshop.pool


def test_psnr_by_hand():
    # Off by a tenth of the spread everywhere: 20 dB.
    wanted = torch.tensor([0.0, 1.0, 2.0])
    assert psnr(wanted + 0.2, wanted, 2.0) == pytest.approx(20.0, abs=1e-4)
    assert psnr(wanted, wanted, 2.0) == float("inf")


def test_patches_are_what_the_models_own_projection_reads(vit):
    anatomy, pool = vit
    images = pool.batch(PRIVATE[:3], 24)["pixel_values"]
    projection = anatomy.backbone.get_submodule("embeddings.patch_embeddings.projection")
    by_hand = patches_of(images, anatomy) @ projection.weight.flatten(1).T + projection.bias
    assert torch.allclose(by_hand, projection(images).flatten(2).transpose(1, 2), atol=1e-5)


def test_at_cut_0_images_come_back_and_blocks_codecs_and_noise_take_away(vit):
    anatomy, pool = vit
    plain = image_recovery(anatomy, pool, KNOWN, PRIVATE)
    floor = mean_image(pool, KNOWN, PRIVATE)
    assert list(plain) == [0, 1, 2, 3, 4]
    assert plain[0] > 40
    assert plain[0] > plain[1] >= plain[4]
    for sent in (Sent(codec="int4"), Sent(noise=0.5)):
        assert image_recovery(anatomy, pool, KNOWN, PRIVATE, sent)[0] < plain[0] - 10
    drowned = image_recovery(anatomy, pool, KNOWN, PRIVATE, Sent(noise=1e4))
    assert max(drowned.values()) < floor + 0.5


def test_who_has_other_weights_than_the_client_does_no_better_than_the_mean_image(vit):
    anatomy, pool = vit
    torch.manual_seed(1)
    stranger = dissect(drawn(CONFIGS["vit"], "vit"))
    found = image_recovery(anatomy, pool, KNOWN, PRIVATE, attackers=stranger)
    assert max(found.values()) < mean_image(pool, KNOWN, PRIVATE) + 0.5


def test_texts_are_refused():
    workshop = build("bert", [4], LocalOptimizer(optim="sgd"))
    with pytest.raises(ConfigError, match="Image recovery is of images, and into this bert model goes text"):
        image_recovery(workshop.backbones["fp32"].anatomy, workshop.pool, KNOWN[:2], KNOWN[2:4])
