"""What a configuration says about time: who is online when, and what devices really are."""

from typing import Annotated, Literal

from pydantic import Field

from fedray.config.kinds import NameAlone, NameOrPath, NotNegative, Positive, Section


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
