"""Aggregation rules by name: the rules, and published methods as presets of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from fedray.aggregation.factor_mean import FactorMean, Mode
from fedray.aggregation.fedex_lora import FedExLora
from fedray.aggregation.inclusive import Inclusive
from fedray.aggregation.product_svd import ProductSVD
from fedray.aggregation.rank_bands import RankBands
from fedray.aggregation.robust import Robust, RobustMode
from fedray.aggregation.rule import Aggregation, Transform
from fedray.aggregation.rule_file import load_rule
from fedray.aggregation.stack import Stack
from fedray.aggregation.transforms import ClipByNorm
from fedray.errors import ConfigError

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "mode": ("zero_pad", "hetlora", "dimension", "frozen_a"),
    "form": ("delta", "state"),
}
_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "factor_mean": ("mode", "form"),
    "product_svd": ("form",),
    "raflora": ("form",),
    "stack": (),
    "fedex_lora": (),
    "inclusivefl": (),
    "robust": ("share", "max_norm"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A name's rule and options.

    Attributes:
        paper: arXiv id, empty where no paper has it.
        weights: what the paper weighs clients by; the caller gives the weights.
    """

    rule: Literal["factor_mean", "product_svd", "raflora", "stack", "fedex_lora", "inclusivefl", "robust"]
    options: Mapping[str, str] = field(default_factory=dict)
    paper: str = ""
    weights: Literal["rows", "uniform"] = "rows"


PRESETS: Mapping[str, Preset] = {
    "factor_mean": Preset(rule="factor_mean", options={"mode": "dimension", "form": "delta"}),
    "product_svd": Preset(rule="product_svd", options={"form": "delta"}),
    "stack": Preset(rule="stack"),
    "fedit": Preset(rule="factor_mean", options={"mode": "zero_pad", "form": "state"}, paper="2305.05644"),
    "hetlora": Preset(
        rule="factor_mean",
        options={"mode": "hetlora", "form": "state"},
        paper="2401.06432",
        weights="uniform",
    ),
    "rbla": Preset(rule="factor_mean", options={"mode": "dimension", "form": "state"}, paper="2408.08699"),
    "flexlora": Preset(rule="product_svd", options={"form": "state"}, paper="2402.11505"),
    "flexlora_delta": Preset(rule="product_svd", options={"form": "delta"}),
    "raflora": Preset(rule="raflora", options={"form": "state"}, paper="2602.13486"),
    "flora": Preset(rule="stack", paper="2409.05976"),
    "coverage_mean": Preset(
        rule="factor_mean", options={"mode": "dimension", "form": "delta"}, weights="uniform"
    ),
    "ffa_lora": Preset(rule="factor_mean", options={"mode": "frozen_a", "form": "delta"}, paper="2403.12313"),
    "fedex_lora": Preset(rule="fedex_lora", paper="2410.09432", weights="uniform"),
    "inclusivefl": Preset(rule="inclusivefl", paper="2202.08036", weights="uniform"),
    **{
        mode: Preset(rule="robust", options={"mode": mode}, paper=paper, weights="uniform")
        for mode, paper in (
            ("median", "1803.01498"),
            ("trimmed_mean", "1803.01498"),
            ("krum", "1703.02757"),
            ("multi_krum", "1703.02757"),
            ("geometric_median", "1912.13445"),
            ("norm_bound", "1911.07963"),
        )
    },
}
"""Published names carry the published form. fedit is zero-padded where ranks differ, as its rivals run it."""


def make_aggregation(
    name: str, options: Mapping[str, object] | None = None, transforms: tuple[Transform, ...] = ()
) -> Aggregation:
    """The rule of a name in `PRESETS`, or of a file.

    Args:
        name: of a preset or a rule, or the path of a Python file (see `rule_file.load_rule`).
        options: ``mode`` and ``form`` where the rule has them, replacing the preset's; ``clip_norm``
            puts a `ClipByNorm` before the other transforms.
        transforms: applied to every update before it is summed.

    Raises:
        ConfigError: for a name, an option or a value that is not known, naming the known ones.
    """
    given = dict(options or {})
    clip = given.pop("clip_norm", None)
    if clip is not None:
        transforms = (ClipByNorm(max_norm=_number(clip)), *transforms)
    if name.endswith(".py"):
        return load_rule(Path(name), given, transforms)
    if name not in PRESETS:
        raise ConfigError(
            f"No aggregation is called {name!r}; the known ones are {', '.join(PRESETS)}, or give the path "
            "of a .py file."
        )
    preset = PRESETS[name]
    return _made(name, preset, _checked(name, preset.rule, given), transforms)


def _made(
    name: str, preset: Preset, given: Mapping[str, Any], transforms: tuple[Transform, ...]
) -> Aggregation:
    chosen = {**preset.options, **given}
    match preset.rule:
        case "factor_mean":
            mode, form = cast(Mode, chosen["mode"]), cast(Any, chosen["form"])
            return FactorMean(mode=mode, form=form, name=name, transforms=transforms)
        case "product_svd":
            return ProductSVD(form=cast(Any, chosen["form"]), name=name, transforms=transforms)
        case "raflora":
            return RankBands(form=cast(Any, chosen["form"]), name=name, transforms=transforms)
        case "stack":
            return Stack(name=name, transforms=transforms)
        case "fedex_lora":
            return FedExLora(name=name, transforms=transforms)
        case "inclusivefl":
            return Inclusive(name=name, transforms=transforms)
        case "robust":
            return Robust(
                mode=cast(RobustMode, chosen["mode"]),
                share=_number(given["share"], "share") if "share" in given else None,
                max_norm=_number(given["max_norm"], "max_norm") if "max_norm" in given else None,
                name=name,
                transforms=transforms,
            )


def _number(value: object, option: str = "clip_norm") -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{option} must be a finite number above 0, found {value!r}.")
    return float(value)


def _checked(name: str, rule: str, given: Mapping[str, object]) -> dict[str, object]:
    for key, value in given.items():
        if key not in _OPTIONS[rule]:
            known = ", ".join([*_OPTIONS[rule], "clip_norm"])
            raise ConfigError(f"Aggregation {name!r} has no option {key!r}; it has {known}.")
        if key in _CHOICES and value not in _CHOICES[key]:
            raise ConfigError(
                f"Option {key!r} of aggregation {name!r} is one of {', '.join(_CHOICES[key])}, "
                f"found {value!r}."
            )
    return dict(given)
