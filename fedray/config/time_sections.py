"""What a configuration says about time: who is online when, and what devices really are."""

from typing import Annotated, Literal

from pydantic import Field

from fedray.config.kinds import Count, NameAlone, NameOrPath, NotNegative, Positive, Section


class Constant(Section):
    """An update counts the same however far it is behind."""

    name: Literal["constant"] = Field("constant", description="The same however far behind.")


class Polynomial(Section):
    """FedAsync's, and with a = 0.5 FedBuff's."""

    name: Literal["polynomial"] = Field("polynomial", description="(versions behind + 1) to the power -a.")
    a: Positive = Field(0.5, description="The larger, the less an old update counts.")


class Hinge(Section):
    """FedAsync's with a bend."""

    name: Literal["hinge"] = Field("hinge", description="1 up to b behind, then 1 / (a (behind - b) + 1).")
    a: Positive = Field(0.5, description="How fast it falls after the bend.")
    b: Annotated[int, Field(ge=0)] = Field(4, description="Versions behind at which it bends.")


class PaceSection(Section):
    """When a round closes."""

    goal: Count | None = Field(None, description="Updates a round waits for; all that were asked if absent.")
    deadline_seconds: Positive | None = Field(
        None, description="Virtual seconds after which a round closes; it waits for everybody if absent."
    )
    late: Literal["drop", "join", "partial"] | None = Field(
        None,
        description="Late updates are dropped (if absent), join a later round (rounds overlap), or partial: "
        "clients do as many steps as the deadline allows.",
    )
    staleness: Annotated[Constant | Polynomial | Hinge, Field(discriminator="name"), NameAlone] | None = (
        Field(None, description="What an update counts that is some versions behind; constant if absent.")
    )
    mixing: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Of every update: FedAsync's alpha; 1 if absent."
    )
    normalizer: Literal["goal", "sum"] | None = Field(
        None, description="A sum is divided by the updates' weights (if absent), or by what they count."
    )
    max_staleness: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Updates further behind are thrown away; none are if absent."
    )


class ActualSection(Section):
    """What devices really are, where that is not what they declare.

    Prices, what fits and policies see declarations; the clock, and who runs out of memory, go by this. A
    spread is the standard deviation of the logarithm of actual over declared, whose median is 1.
    """

    fleet: NameOrPath | None = Field(
        None, description="A CSV or Parquet table of what the clients are; as they declare if absent."
    )
    memory_misreport: NotNegative = Field(0.0, description="Spread of memory, drawn once for each client.")
    compute_misreport: NotNegative = Field(0.0, description="Spread of arithmetic rates, once for each.")
    link_misreport: NotNegative = Field(0.0, description="Spread of link rates, once for each.")
    compute_drift: NotNegative = Field(
        0.0, description="Spread that a day of virtual time adds; a client goes one way all the time."
    )
    compute_jitter: NotNegative = Field(
        0.0, description="Spread of arithmetic rates, drawn for each client and round."
    )
    link_jitter: NotNegative = Field(0.0, description="Spread of link rates, for each client and round.")
    crashes_per_hour: NotNegative = Field(
        0.0, description="Of a client on its way, at any moment of it; who crashes drops out."
    )
    budgets: NameOrPath | None = Field(
        None,
        description="Parquet or CSV of what is left to this job: client, start_s, memory_share, "
        "compute_share, link_share, each row until the client's next one.",
    )
    budgets_period_seconds: Positive | None = Field(
        None, description="After which budgets repeat; a day if absent."
    )


class ServerLinkSection(Section):
    """The server's own link, which all who are on the way at once share evenly."""

    up_bps: Positive | None = Field(
        None, description="Bits a second that all updates together send; never short if absent."
    )
    down_bps: Positive | None = Field(
        None, description="Bits a second that all clients together receive; never short if absent."
    )


class DeclaredShare(Section):
    """Each profile's share of time online, drawn anew for every round."""

    name: Literal["declared"] = Field("declared", description="The share that a profile declares, by lot.")


class OnlineTrace(Section):
    """Intervals of real devices, from a file."""

    name: Literal["trace"] = Field("trace", description="Intervals of a file, a trace's client for each.")
    file: NameOrPath = Field(
        description="Parquet or CSV with client, start_s and end_s, or JSON of FedScale or FLASH."
    )
    kind: str | None = Field(None, description="Of a table that has several, such as strict and loose.")
    period_seconds: Positive | None = Field(
        None, description="After which it repeats; as the file says, or its last hour, if absent."
    )
    start_seconds: NotNegative = Field(0.0, description="Where in the trace a run starts.")


class Diurnal(Section):
    """One session a day, as long as the declared share of time."""

    name: Literal["diurnal"] = Field("diurnal", description="A session a day, of the declared share of it.")
    peak_hour: Annotated[float, Field(ge=0, le=24)] = Field(
        3.0, description="Hour of the day at which most are online."
    )
    spread_hours: NotNegative = Field(3.0, description="How far clients lie apart: a standard deviation.")
    start_seconds: NotNegative = Field(0.0, description="Of the day, at which a run starts.")


Availability = Annotated[DeclaredShare | OnlineTrace | Diurnal, Field(discriminator="name"), NameAlone]


class NeverCharging(Section):
    """What batteries held at first is all there is."""

    name: Literal["never"] = Field("never", description="Batteries are never charged.")


class ChargingDaily(Section):
    """One stretch a day for every client."""

    name: Literal["daily"] = Field("daily", description="A stretch of so many hours a day, each its own.")
    hours: Annotated[float, Field(gt=0, le=24)] = Field(8.0, description="Of each day on the charger.")
    peak_hour: Annotated[float, Field(ge=0, le=24)] = Field(
        3.0, description="Hour of the day at which most are charging."
    )
    spread_hours: NotNegative = Field(2.0, description="How far clients lie apart: a standard deviation.")
    start_seconds: NotNegative = Field(0.0, description="Of the day, at which a run starts.")


class ChargingTrace(Section):
    """Intervals in which real devices were charging, from a file."""

    name: Literal["trace"] = Field("trace", description="Intervals of a file, a trace's client for each.")
    file: NameOrPath = Field(description="As for availability; of FLASH's logs when a phone was charging.")
    kind: str | None = Field(None, description="Of a table that has several, such as strict and loose.")
    period_seconds: Positive | None = Field(
        None, description="After which it repeats; as the file says, or its last hour, if absent."
    )
    start_seconds: NotNegative = Field(0.0, description="Where in the trace a run starts.")


Charging = Annotated[NeverCharging | ChargingDaily | ChargingTrace, Field(discriminator="name"), NameAlone]


class BatterySection(Section):
    """Batteries of the profiles that have battery_joules; devices without are on mains."""

    start_share: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Of its capacity in each battery as the run starts."
    )
    reserve_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.2, description="Of its capacity that a client keeps back, but for while it is charging."
    )
    charging: Charging = Field(default_factory=ChargingDaily, description="Who is charging when.")
