"""What goes with a cut and what does not: checked in one place, each with its sentence."""

from collections.abc import Sequence

from fedray.codec_names import check_cut_codec, num_seeds
from fedray.errors import ConfigError


def check_cut(*, split: bool, tail: int, local_loss: bool, cut_codec: str, below: Sequence[bool]) -> None:
    """Raises ConfigError.

    Args:
        split: whether there is a cut.
        tail: trailing blocks of the client.
        local_loss: whether it learns from a head at its cut.
        cut_codec: what crosses is sent as.
        below: of each block below the cut whether it has a rank.
    """
    check_cut_codec(cut_codec)
    given = {"tail": tail, "local_loss": local_loss, "cut_codec": cut_codec != "none"}
    needless = [name for name, value in given.items() if value]
    if not split and needless:
        raise ConfigError(f"{needless[0]} has no effect without split = true; set it or drop {needless[0]}.")
    if tail < 0:
        raise ConfigError(f"tail counts trailing blocks, 0 or more, found {tail}.")
    if local_loss and tail:
        raise ConfigError(
            f"local_loss ends the client's own work at its cut, and tail = {tail} would wait for the "
            "server; drop the one or the other."
        )
    if local_loss and not any(below):
        raise ConfigError("local_loss trains blocks below the cut, and none has a rank; give one or drop it.")


def check_black_box(
    perturbations: int, *, tail: int, local_loss: bool, up_codec: str, below: Sequence[bool]
) -> None:
    """Raises ConfigError for what a client cannot have that gets a loss alone from its server.

    Args:
        perturbations: directions of each of its steps.
        tail: trailing blocks of the client.
        local_loss: whether it learns from a head at its cut.
        up_codec: what its share of the update is sent as.
        below: of each block below the cut whether it has a rank.
    """
    against = {
        f"tail = {tail} asks it for hidden states": tail > 0,
        "local_loss asks it for nothing": local_loss,
        "no block below the cut has a rank that its losses could move": not any(below),
        f"up_codec {up_codec} tells of directions of a whole adapter": num_seeds(up_codec) is not None,
    }
    why = next((reason for reason, holds in against.items() if holds), None)
    if why is not None:
        raise ConfigError(
            f"perturbations = {perturbations} under a cut make a black-box client, whose server answers with "
            f"a loss alone, and {why}; drop one of the two."
        )
