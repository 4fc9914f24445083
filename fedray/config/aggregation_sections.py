"""What a configuration says about the state that updates become."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from fedray.config.kinds import NameAlone, NameOrPath, PartShare, Positive, Section


class NoServerOptimizer(Section):
    """What the rule makes of a round is the next state."""

    name: Literal["none"] = Field("none", description="What the rule makes of a round is the next state.")


class ServerMomentum(Section):
    """FedAvgM (1909.06335)."""

    name: Literal["momentum"] = Field("momentum", description="FedAvgM.")
    learning_rate: Positive = Field(1.0, description="Of the server.")
    beta1: PartShare = Field(0.9, description="Share of the rounds before that is kept.")


class ServerAdagrad(Section):
    """FedAdagrad (2003.00295)."""

    name: Literal["adagrad"] = Field("adagrad", description="FedAdagrad.")
    learning_rate: Positive = Field(description="Of the server.")
    beta1: PartShare = Field(0.0, description="Decay of the first moment.")
    tau: Positive = Field(1e-3, description="Added to the denominator; the smaller, the more adaptive.")


class ServerAdam(Section):
    """FedAdam (2003.00295)."""

    name: Literal["adam"] = Field("adam", description="FedAdam.")
    learning_rate: Positive = Field(description="Of the server.")
    beta1: PartShare = Field(0.9, description="Decay of the first moment.")
    beta2: PartShare = Field(0.99, description="Decay of the second moment.")
    tau: Positive = Field(1e-3, description="Added to the denominator; the smaller, the more adaptive.")


class ServerYogi(Section):
    """FedYogi (2003.00295)."""

    name: Literal["yogi"] = Field("yogi", description="FedYogi.")
    learning_rate: Positive = Field(description="Of the server.")
    beta1: PartShare = Field(0.9, description="Decay of the first moment.")
    beta2: PartShare = Field(0.99, description="How slowly the second moment follows.")
    tau: Positive = Field(1e-3, description="Added to the denominator; the smaller, the more adaptive.")


ServerOptimizer = ServerMomentum | ServerAdagrad | ServerAdam | ServerYogi


class AggregationSection(Section):
    """How unlike updates become one state."""

    name: NameOrPath = Field(
        "auto", description="A rule's name or file; auto is the one the policy asks for."
    )
    options: Mapping[str, Any] = Field(default_factory=dict, description="Of the rule, such as mode or form.")
    weights: Literal["rows", "uniform"] | None = Field(
        None, description="An update weighs its rows, or all alike; as the rule's paper has it if absent."
    )
    clip_norm: Positive | None = Field(None, description="Each update is cut to this norm.")
    server_optimizer: Annotated[
        NoServerOptimizer | ServerOptimizer, Field(discriminator="name"), NameAlone
    ] = Field(
        default_factory=NoServerOptimizer,
        description="What the server makes of the round's change of the state, with moments over rounds.",
    )
