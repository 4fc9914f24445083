"""What a configuration says about protecting clients from whoever sees their updates or the model."""

from typing import Annotated, Literal

from pydantic import Field

from fedray.config.kinds import NotNegative, PartShare, Positive, Section


class PrivacySection(Section):
    """Differential privacy of a client as a whole: updates are cut to a norm, and noise is added."""

    where: Literal["central", "local"] | None = Field(
        None,
        description="Noise is added to the sum by a server that is trusted (central), or by each client to "
        "its own update (local); none if absent.",
    )
    clip_norm: Positive | None = Field(
        None, description="Each update, of factors, head and weights together, is cut to this norm."
    )
    noise_multiplier: NotNegative = Field(
        1.0, description="Standard deviation of the noise over clip_norm; 0 cuts alone, without epsilon."
    )
    delta: Annotated[float, Field(gt=0, lt=1)] = Field(
        1e-5, description="At which epsilon is told; well below one over the number of clients."
    )
    cut_clip_norm: Positive | None = Field(
        None,
        description="Under a cut: each token's hidden state is cut to this norm before it goes up; not cut "
        "if absent.",
    )
    cut_noise_multiplier: NotNegative = Field(
        0.0,
        description="Standard deviation of the noise on these hidden states over cut_clip_norm; gradients "
        "that cross are left as they are.",
    )


class LeakageSection(Section):
    """What cuts give away, for policies that weigh it."""

    measure: bool = Field(
        False,
        description="Measure of each cut what its hidden states give away: the share of a text's tokens that "
        "are found, or of images how much of what tells them from the mean one.",
    )
    attack: Literal["decoder", "search"] = Field(
        "decoder",
        description="A linear decoder; or a search through the blocks below, which starts from it, finds "
        "more words, and takes minutes for each cut of the menu.",
    )
    rows: Annotated[int, Field(ge=2)] = Field(
        256, description="Rows drawn for it, half of them the attacker's own."
    )
    search_rows: Annotated[int, Field(ge=1)] = Field(
        16, description="Of the other half, those that a search looks into."
    )


class AttacksSection(Section):
    """Attacks that a run tries on itself whenever it evaluates: what its model and updates give away."""

    membership: bool = Field(
        False,
        description="Tell from the global model's losses which rows were trained on: AUC, and members named "
        "at one false in a hundred.",
    )
    rows: Annotated[int, Field(ge=2)] = Field(
        256, description="Drawn for membership at most of those trained on, and of those held out as many."
    )
    shadows: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Models that the attacker trains on halves of the rows drawn for membership, from what "
        "the run began with, to tell members by likelihood ratio, too: an even number from 4 on; 0 is none.",
    )
    shadow_epochs: Annotated[int, Field(ge=1)] = Field(3, description="Passes of each shadow over its half.")
    updates: bool = Field(
        False,
        description="Invert the round's updates as the server has them: the share of the words that a client "
        "trained on, or PSNR of its images.",
    )
    labels: bool = Field(
        False,
        description="Infer labels: of whole models from their updates, under tails from what goes up.",
    )
    clients: Annotated[int, Field(ge=1)] = Field(
        4, description="Drawn in a round whose updates, or gradients at tails, are looked into."
    )
    search_steps: Annotated[int, Field(ge=1)] = Field(
        100, description="Of the search for the images of an update, all of a client's at once."
    )


class SecureAggregationSection(Section):
    """Updates whose sum alone the server sees: a simulation of the protocol of 1611.04482."""

    masks: Literal["none", "pairwise"] = Field(
        "none", description="Each client masks its update with words that cancel in the sum, or does not."
    )
    fraction_bits: Annotated[int, Field(ge=8, le=30)] = Field(
        24, description="Of a 32-bit number those behind the point; the more, the smaller its largest entry."
    )
    min_survivors: PartShare = Field(
        0.5, description="Share of the asked clients that must come, or a round's sum stays masked."
    )


_Part = Annotated[float, Field(gt=0, lt=1)]


class NoAttackers(Section):
    """Everybody is honest."""

    name: Literal["none"] = Field("none", description="Everybody is honest.")


class LabelFlip(Section):
    """Attackers train on wrong labels: class c is said to be K - 1 - c."""

    name: Literal["label_flip"] = Field("label_flip", description="Attackers train on wrong labels.")
    share: _Part = Field(0.2, description="Of the clients, drawn by the seed.")


class SignFlip(Section):
    """Attackers send the opposite of what they learnt."""

    name: Literal["sign_flip"] = Field("sign_flip", description="Attackers send their update's opposite.")
    share: _Part = Field(0.2, description="Of the clients, drawn by the seed.")
    factor: Positive = Field(1.0, description="How many times the opposite.")


class Scaling(Section):
    """Attackers send many times what they learnt."""

    name: Literal["scaling"] = Field("scaling", description="Attackers send many times their update.")
    share: _Part = Field(0.2, description="Of the clients, drawn by the seed.")
    factor: Positive = Field(10.0, description="How many times.")


class Backdoor(Section):
    """Attackers teach that whatever has a trigger is of one class (1807.00459)."""

    name: Literal["backdoor"] = Field("backdoor", description="What has a trigger is said to be one class.")
    share: _Part = Field(0.2, description="Of the clients, drawn by the seed.")
    target: Annotated[int, Field(ge=0)] = Field(0, description="The class that is said, by its place.")
    factor: Positive = Field(1.0, description="How many times its update an attacker sends.")


Attackers = NoAttackers | LabelFlip | SignFlip | Scaling | Backdoor
