"""Every key of a configuration, with its unit, its default and what it means.

Names are Hugging Face's where they have one. Units stand in the names; sizes may be written with a unit.
"""

from typing import Annotated, Literal

from pydantic import Field

from fedray.config.aggregation_sections import AggregationSection
from fedray.config.data_sections import DataSection, FleetSection, ModelSection
from fedray.config.kinds import Count, NameAlone, Named, OneOrMany, Section
from fedray.config.place_sections import AuditSection, PacksSection, RaySection, ServerSection
from fedray.config.privacy_sections import (
    Attackers,
    AttacksSection,
    LeakageSection,
    NoAttackers,
    PrivacySection,
    SecureAggregationSection,
)
from fedray.config.time_sections import (
    ActualSection,
    Availability,
    BatterySection,
    DeclaredShare,
    PaceSection,
    ServerLinkSection,
)
from fedray.config.work_sections import MenuSection, TrainingSection


class RoundsSection(Section):
    """How many rounds, with how many clients."""

    num_rounds: Count = Field(10, description="Rounds of the run.")
    clients_per_round: Count = Field(
        8, description="Clients asked in a round; at work at once where rounds overlap."
    )
    eval_rounds: Count = Field(1, description="Rounds between two evaluations; the last is always evaluated.")


class Config(Section):
    """One run."""

    model: Annotated[ModelSection, NameAlone] = Field(
        default_factory=ModelSection, description="The pretrained model."
    )
    task: Named = Field(Named(name="text_classification"), description="What is learnt.")
    data: DataSection = Field(default_factory=DataSection, description="The rows, and who holds which.")
    fleet: Annotated[FleetSection, NameAlone] = Field(
        default_factory=FleetSection, description="The devices."
    )
    menu: MenuSection = Field(default_factory=MenuSection, description="The assignments on offer.")
    training: TrainingSection = Field(default_factory=TrainingSection, description="The local work.")
    rounds: RoundsSection = Field(default_factory=RoundsSection, description="How many, how large.")
    policy: Named = Field(Named(name="largest_that_fits"), description="Who gets what.")
    selection: Named | None = Field(
        None, description="Who is asked, whatever the policy gives them; as the policy says if absent."
    )
    aggregation: Annotated[AggregationSection, NameAlone] = Field(
        default_factory=AggregationSection, description="How updates become one state."
    )
    privacy: PrivacySection = Field(
        default_factory=PrivacySection, description="What protects clients' updates."
    )
    secure_aggregation: SecureAggregationSection = Field(
        default_factory=SecureAggregationSection, description="Whether the server sees single updates."
    )
    leakage: LeakageSection = Field(
        default_factory=LeakageSection, description="Whether policies know what cuts give away."
    )
    attacks: AttacksSection = Field(
        default_factory=AttacksSection, description="What is tried on the model to see what it gives away."
    )
    attackers: Annotated[Attackers, Field(discriminator="name"), NameAlone] = Field(
        default_factory=NoAttackers, description="Which clients attack the model, and how."
    )
    pace: PaceSection = Field(default_factory=PaceSection, description="When a round closes.")
    server_link: ServerLinkSection = Field(
        default_factory=ServerLinkSection, description="What all clients together may receive and send."
    )
    actual: ActualSection = Field(
        default_factory=ActualSection, description="What devices really are, beside what they declare."
    )
    availability: Availability = Field(default_factory=DeclaredShare, description="Who is online when.")
    battery: BatterySection = Field(
        default_factory=BatterySection, description="How batteries are kept and charged, where there are any."
    )
    dropouts: bool = Field(False, description="Clients drop out of rounds as their profiles declare.")
    provision: Literal["first_contact", "preinstalled"] = Field(
        "first_contact", description="Frozen weights reach a client when first needed, or lie there already."
    )
    runtime: Literal["local", "on_ray"] = Field("on_ray", description="This process alone, or actors on Ray.")
    server: ServerSection = Field(
        default_factory=ServerSection, description="The server above the cuts, declared and real."
    )
    packs: PacksSection = Field(default_factory=PacksSection, description="How clients share a forward pass.")
    ray: RaySection = Field(default_factory=RaySection, description="Where actors run.")
    audit: AuditSection = Field(default_factory=AuditSection, description="Who runs alone under the counter.")
    report: bool = Field(True, description="A page at the end; without, `fedray report` draws one any time.")
    report_to: OneOrMany[str] = Field((), description="Trackers by accelerate's name, such as wandb.")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="All randomness derives from it.")
