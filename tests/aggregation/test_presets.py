"""Rules by name."""

import re

import pytest

from fedray.aggregation.factor_mean import FactorMean
from fedray.aggregation.fedex_lora import FedExLora
from fedray.aggregation.presets import PRESETS, make_aggregation
from fedray.aggregation.product_svd import ProductSVD
from fedray.aggregation.rank_bands import RankBands
from fedray.aggregation.stack import Stack
from fedray.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fedit", FactorMean(mode="zero_pad", form="state", name="fedit")),
        ("hetlora", FactorMean(mode="hetlora", form="state", name="hetlora")),
        ("rbla", FactorMean(mode="dimension", form="state", name="rbla")),
        ("flexlora", ProductSVD(form="state", name="flexlora")),
        ("flexlora_delta", ProductSVD(form="delta", name="flexlora_delta")),
        ("raflora", RankBands()),
        ("flora", Stack(name="flora")),
        ("ffa_lora", FactorMean(mode="frozen_a", form="delta", name="ffa_lora")),
        ("fedex_lora", FedExLora(name="fedex_lora")),
        ("factor_mean", FactorMean(mode="dimension", form="delta")),
        ("product_svd", ProductSVD(form="delta")),
        ("stack", Stack()),
    ],
)
def test_a_name_gives_the_published_form(name, expected):
    assert make_aggregation(name) == expected


def test_b_alone_is_summed_as_changes_only():
    with pytest.raises(ConfigError, match="what few clients hold would shrink, so drop form"):
        make_aggregation("ffa_lora", {"form": "state"})


def test_every_preset_can_be_made():
    assert [make_aggregation(name).name for name in PRESETS] == list(PRESETS)


def test_options_replace_the_presets_own():
    assert make_aggregation("hetlora", {"form": "delta"}) == FactorMean(
        mode="hetlora", form="delta", name="hetlora"
    )


def test_an_unknown_name_names_the_known_ones():
    with pytest.raises(ConfigError, match=f"No aggregation is called 'fedavg'.*{', '.join(PRESETS)}"):
        make_aggregation("fedavg")


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("flora", {"form": "delta"}, "Aggregation 'flora' has no option 'form'; it has clip_norm."),
        (
            "flexlora",
            {"mode": "hetlora"},
            "Aggregation 'flexlora' has no option 'mode'; it has form, clip_norm.",
        ),
        ("hetlora", {"form": "sum"}, "'form' of aggregation 'hetlora' is one of delta, state, found 'sum'."),
        ("rbla", {"mode": 3}, "is one of zero_pad, hetlora, dimension, frozen_a, found 3."),
        ("rbla", {"clip_norm": "big"}, "clip_norm must be a finite number above 0, found 'big'."),
        ("rbla", {"clip_norm": True}, "clip_norm must be a finite number above 0, found True."),
    ],
)
def test_an_option_that_cannot_take_effect_is_refused(name, options, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        make_aggregation(name, options)
