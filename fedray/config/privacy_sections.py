"""What a configuration says about protecting clients from whoever sees their updates or the model."""

from typing import Annotated, Literal

from pydantic import Field

from fedray.config.kinds import NotNegative, Positive, Section


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
