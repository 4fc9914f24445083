"""Label inference: from the gradient that a client with a tail sends up, and from a whole model's update.

Under a U-shape labels never leave, and the gradient of each row's loss does, at the tail's lower end. Rows of
one class are pushed the same way, and a rare class is pushed harder. Under a plain cut there is nothing to
infer: the loss lies with the server, and labels are sent up to it. Of a whole model the head's bias says
which classes its rows have, and about how many of each.

Letters of shapes: N rows, T tokens, D hidden width, K labels.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fedray.attacks.membership import Membership, strength
from fedray.errors import ConfigError


def of_rows(gradient: Tensor, mask: Tensor) -> Tensor:
    """A row's gradient as one vector: the sum over its real tokens, [N, T, D] and [N, T] to [N, D]."""
    return (gradient * mask.unsqueeze(-1)).sum(1)


def by_norm(gradients: Tensor, labels: Tensor, positive: int) -> Membership:
    """How well the length of a row's gradient tells one class from the others, as AUC.

    The norm attack of 2102.08504-style: where a class is rare, or badly learnt, the model errs more on it.

    Args:
        gradients: of rows, [N, D].
        labels: the truth, [N].
        positive: the class that is looked for.

    Raises:
        ConfigError: for rows of one kind alone.
    """
    lengths = gradients.norm(dim=1).double()
    own = labels == positive
    return strength(lengths[own].numpy(), lengths[~own].numpy())


def counts_in(bias: Tensor, num_rows: int) -> Tensor:
    """How many of a client's rows have each class, [K], from the gradient [K] of its head's bias.

    Under cross entropy an entry is the mean of what the model gave a class, less its share of the rows. Taken
    are all classes to be given alike, and the one with the largest entry not to be there: that fixes the
    scale, so an update serves with its sign turned, however long. Exact for one step at a fresh head where a
    class is missing; of more steps, or of AdamW's, a guess. (The extraction of one label after another, LLG,
    2105.09369, reads the same signs and tells fewer where it was tried.)

    Args:
        bias: gradient of the loss, up to a factor.
        num_rows: that the client trained on; taken as known.
    """
    gradient = bias.double()
    scale = max(float(gradient.max()) * len(bias), 1e-12)
    shares = (1 / len(bias) - gradient / scale).clamp(min=0)
    wanted = num_rows * shares / shares.sum()
    said = wanted.floor().long()
    nearest = (wanted - said).argsort(descending=True, stable=True)
    said[nearest[: num_rows - int(said.sum())]] += 1
    return said


def by_direction(known: Tensor, known_labels: Tensor, private: Tensor) -> Tensor:
    """The label of each private row: that of the known rows whose gradients point the same way in the mean.

    2102.08504's direction attack-style, for any number of classes.

    Args:
        known: gradients of rows whose labels the attacker has, [N, D].
        known_labels: these, [N].
        private: gradients of the others, [N, D].

    Returns:
        Labels [N], always one of the known rows'.

    Raises:
        ConfigError: without known rows.
    """
    if not len(known):
        raise ConfigError("Label inference by direction needs rows whose labels are known: found none.")
    classes = known_labels.unique()
    directions = normalize(known, dim=1)
    means = torch.stack([directions[known_labels == one].mean(0) for one in classes])
    closest = (normalize(private, dim=1) @ normalize(means, dim=1).T).argmax(1)
    said: Tensor = classes[closest]
    return said
