"""Gradient matching: it finds what a gradient has, and a gradient of any length."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from fedray.attacks.matching import gradients_of_images, matched
from fedray.errors import ConfigError
from shop import BLOCKS, assign, build, start
from split_shop import SGD


def test_through_a_linear_classifier_an_image_is_found_again_up_to_its_length():
    torch.manual_seed(0)
    weight = torch.randn(5, 64) / 8
    true, label = torch.rand(1, 1, 8, 8) * 2 - 1, torch.tensor([3])

    def gradients_of(images):
        own = weight.clone().requires_grad_()
        loss = cross_entropy(images.flatten(1) @ own.T, label)
        return torch.autograd.grad(loss, [own], create_graph=True)

    seen = [1e-3 * gradient.detach() for gradient in gradients_of(true)]
    start = torch.rand(1, 1, 8, 8) * 2 - 1
    found = matched(gradients_of, seen, start, steps=150, smoothness=0.0)
    along = torch.nn.functional.cosine_similarity(found.flatten(), true.flatten(), dim=0)
    assert float(torch.nn.functional.cosine_similarity(start.flatten(), true.flatten(), dim=0)) < 0.3
    assert float(along) > 0.99


def test_gradients_of_images_are_those_of_training_and_a_search_goes_towards_them():
    workshop = build("vit", [1], SGD)
    given = assign("vit", BLOCKS, 2, batch_size=1, max_steps=1)
    sent = start(workshop, "vit", given)
    batch = workshop.pool.batch(workshop.partitions[0], 24)
    gradients_of = gradients_of_images(workshop.backbones["fp32"], workshop.task, given, sent, batch)
    true = batch["pixel_values"]
    seen = [gradient.detach() for gradient in gradients_of(true)]
    begun = torch.rand(true.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def distance(images):
        own = torch.cat([gradient.detach().flatten() for gradient in gradients_of(images)])
        return 1 - torch.nn.functional.cosine_similarity(own, torch.cat([s.flatten() for s in seen]), dim=0)

    assert float(distance(true)) < 1e-5
    found = matched(gradients_of, seen, begun, steps=30)
    assert float(distance(found)) < 0.5 * float(distance(begun))


def test_texts_are_refused():
    workshop = build("bert", [1], SGD)
    given = assign("bert", BLOCKS, 2)
    sent = start(workshop, "bert", given)
    with pytest.raises(ConfigError, match="A search moves pixels, and into this bert model go token ids"):
        gradients_of_images(workshop.backbones["fp32"], workshop.task, given, sent, {})
