"""Names of what crosses a cut and of what updates are sent as; how they code is `fedray.model`'s."""

import re

from fedray.errors import ConfigError

_CUT_CODEC = re.compile(r"none|bf16|int8|int4|top[1-9][0-9]?")
_UPDATE_CODEC = re.compile(rf"{_CUT_CODEC.pattern}|rank[1-9][0-9]*")
_SEEDS = re.compile(r"seeds([1-9][0-9]*)")


def num_seeds(codec: str) -> int | None:
    """How many shared seeds an update is told by, a number for each; None for a codec of tensors."""
    found = _SEEDS.fullmatch(codec)
    return None if found is None else int(found[1])


def check_cut_codec(name: str) -> None:
    """Raises ConfigError for a name that stands for no codec of hidden states."""
    if not _CUT_CODEC.fullmatch(name):
        raise ConfigError(
            f"cut_codec is one of none, bf16, int8, int4 or top1 to top99 (per cent), found {name!r}."
        )


def check_update_codecs(*, up_codec: str, down_codec: str, perturbations: int = 0) -> None:
    """Raises ConfigError for a name that stands for no codec, or for one that a client cannot have."""
    if num_seeds(up_codec) is not None:
        if not perturbations:
            raise ConfigError(
                f"up_codec {up_codec} sends how far a client went along shared directions, and this one has "
                "a backward pass; give perturbations, or another codec."
            )
        up_codec = "none"
    for knob, name in (("up_codec", up_codec), ("down_codec", down_codec)):
        if not _UPDATE_CODEC.fullmatch(name):
            raise ConfigError(
                f"{knob} is one of none, bf16, int8, int4, top1 to top99 (per cent) or rank1, rank2, ..., "
                f"and up of forward-only clients seeds1, seeds2, ...; found {name!r}."
            )
