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
