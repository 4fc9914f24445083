"""What a client keeps for its backward pass: all of it, some in 8 bits, or nothing where it has none."""

from fedray.errors import ConfigError


def blocks_in_8_bits(first: int | None, count: int) -> range:
    """Places of the blocks whose activations are kept in 8 bits.

    Args:
        first: the lowest with a backward pass; None without any.
        count: how many of those, counted from the lowest.
    """
    return range(0) if first is None else range(first, first + count)


def check_8_bits(count: int, *, backward: int, split: bool, recompute: bool, perturbations: int) -> None:
    """Raises ConfigError for what cannot be, or would save nothing.

    Args:
        count: blocks whose activations are kept in 8 bits.
        backward: blocks with a backward pass.
        split: whether a server runs the others.
        recompute: whether blocks keep nothing at all.
        perturbations: of a client without a backward pass.
    """
    if not count:
        return
    against = {
        "a server runs the blocks above a cut": split,
        "recompute keeps no activations": recompute,
        "a forward-only client keeps none": perturbations > 0,
    }
    why = next((reason for reason, holds in against.items() if holds), None)
    if why is not None:
        raise ConfigError(
            f"int8_activations = {count} rounds what blocks keep for their backward pass, and {why}; drop "
            "one of the two."
        )
    if not 0 <= count <= backward:
        raise ConfigError(
            f"int8_activations counts blocks with a backward pass, 0 to {backward} of them here, found "
            f"{count}."
        )


def check_forward_only(perturbations: int, *, recompute: bool) -> None:
    """Raises ConfigError for directions in place of a backward pass that something else goes on with."""
    if perturbations < 0:
        raise ConfigError(f"perturbations counts directions, 0 or more, found {perturbations}.")
    if perturbations and recompute:
        raise ConfigError(
            f"perturbations = {perturbations} makes a forward-only client, and with recompute there is no "
            "backward pass to recompute for; drop one of the two."
        )
