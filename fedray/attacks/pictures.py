"""Activation inversion of images: patches from the hidden states that a client sends up at a cut.

As for words (`inversion`), a linear decoder is fitted at every cut on rows of the attacker's own: from a
patch's hidden state to its pixels, both less their mean at that place over known rows. At cut 0 hidden states
are a linear image of the patches, so with a width of at least a patch's numbers all must come back.

Letters of shapes: N images, C channels, H height, W width, T patches, P numbers of a patch, D hidden width.
"""

from math import inf, log10

from torch import Tensor

from fedray.attacks.depths import ByDepth, by_depth
from fedray.attacks.inversion import Sent, as_sent, decoded_by, fitted
from fedray.errors import ConfigError
from fedray.model.anatomy import Anatomy
from fedray.training.data import Encoded, Rows


def image_recovery(
    anatomy: Anatomy,
    pool: Encoded,
    known: Rows,
    private: Rows,
    sent: Sent | None = None,
    attackers: Anatomy | None = None,
) -> dict[int, float]:
    """Of each cut, from 0 to all blocks, how near the decoded private images come, as PSNR in dB.

    Args:
        anatomy: of the pretrained model, with its weights.
        pool: all rows.
        known: images that the attacker has itself, to fit its decoders on.
        private: images whose hidden states it is sent.
        sent: how these are sent; as they are if absent.
        attackers: of the model that the attacker has instead, alike but for its weights; the same if absent.

    Raises:
        ConfigError: for a model of text, or no rows on one side.
    """
    if anatomy.takes_text:
        raise ConfigError(
            f"Image recovery is of images, and into this {anatomy.model.config.model_type} model goes text."
        )
    theirs, own = by_depth(attackers or anatomy, pool, known), by_depth(anatomy, pool, private)
    patches, wanted = patches_of(theirs.inputs, anatomy), patches_of(own.inputs, anatomy)
    spread = float(theirs.inputs.max() - theirs.inputs.min())
    way = sent or Sent()
    found = {}
    for cut in range(anatomy.num_blocks + 1):
        states, seen = (_of_patches(side, way, cut, len(patches[0])) for side in (theirs, own))
        middle, usual = states.mean(0), patches.mean(0)
        decoder = fitted((states - middle).flatten(0, 1), (patches - usual).flatten(0, 1), ridge=1e-6)
        guessed = decoded_by((seen - middle).flatten(0, 1), decoder).view(wanted.shape) + usual
        found[cut] = psnr(guessed, wanted, spread)
    return found


def mean_image(pool: Encoded, known: Rows, private: Rows) -> float:
    """PSNR of always saying the mean of the known images: what an attack must pass to be one."""
    theirs, own = (pool.batch(rows, int(pool.lengths[0]))["pixel_values"] for rows in (known, private))
    return psnr(theirs.mean(0).expand_as(own), own, float(theirs.max() - theirs.min()))


def psnr(guessed: Tensor, wanted: Tensor, spread: float) -> float:
    """Peak signal-to-noise ratio in dB, over all numbers together; infinite where nothing is wrong.

    Args:
        guessed: of any shape; ``wanted`` of the same.
        wanted: the truth.
        spread: from the darkest to the brightest number there is.
    """
    error = float((guessed - wanted).square().mean())
    return 10 * log10(spread**2 / error) if error else inf


def share_told(found: float, floor: float) -> float:
    """Of what tells images from the mean one the share that is found: 0 at its PSNR or below, 1 at no error.

    Args:
        found: PSNR of what an attack found, in dB.
        floor: PSNR of the mean image.
    """
    return max(0.0, 1 - 10 ** ((floor - found) / 10))


def patches_of(images: Tensor, anatomy: Anatomy) -> Tensor:
    """Images [N, C, H, W] as the model's patches, [N, T, P], in the order of its tokens."""
    size = anatomy.model.config.patch_size
    height, width = (size, size) if isinstance(size, int) else size
    rows = images.unfold(2, height, height).unfold(3, width, width)  # [N, C, across, down, height, width]
    return rows.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def _of_patches(side: ByDepth, way: Sent, cut: int, num_patches: int) -> Tensor:
    """As they arrive, [N, T, D]: without what stands before the patches, such as a class token."""
    states = as_sent(side.states[cut], way, cut)
    return states.view(len(side.rows), -1, states.shape[-1])[:, -num_patches:]
