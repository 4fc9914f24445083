"""What a configuration says about the model, the rows and the devices."""

from typing import Annotated, Literal

from pydantic import Field

from fedray.config.kinds import (
    Count,
    Many,
    NameAlone,
    NameOrPath,
    NotNegative,
    PartShare,
    Positive,
    Section,
    Share,
)


class ModelSection(Section):
    """The pretrained model."""

    name: NameOrPath = Field(
        "minilm", description="minilm (all-MiniLM-L6-v2, in the demo extra), a Hugging Face id, or a folder."
    )


class Iid(Section):
    """Equal shares of the shuffled rows."""

    name: Literal["iid"] = Field("iid", description="Equal shares of the shuffled rows.")


class Dirichlet(Section):
    """Of every label, shares drawn from a Dirichlet distribution (1905.12022)."""

    name: Literal["dirichlet"] = Field("dirichlet", description="Label shares drawn from Dirichlet(alpha).")
    alpha: Positive = Field(0.3, description="The smaller, the more unlike the clients.")
    label_column: str = Field("label", description="Column that holds the label.")
    min_partition_size: Count = Field(1, description="Rows that every client gets at least.")


class NaturalId(Section):
    """One client for every value of a column."""

    name: Literal["natural_id"] = Field("natural_id", description="One client for every value of a column.")
    column: str = Field(description="Column whose values are the clients: a speaker, an author, a device.")
    min_rows: Count = Field(1, description="Clients with fewer rows are left out.")
    max_clients: Count | None = Field(None, description="At most so many clients, drawn by the seed.")


class Pathological(Section):
    """Every client holds a few labels only (1602.05629)."""

    name: Literal["pathological"] = Field("pathological", description="A few labels for every client.")
    num_classes_per_partition: Count = Field(2, description="Labels of one client.")
    label_column: str = Field("label", description="Column that holds the label.")


Partitioner = Annotated[Iid | Dirichlet | NaturalId | Pathological, Field(discriminator="name"), NameAlone]


class DataSection(Section):
    """The rows, and who holds which."""

    source: NameOrPath = Field(
        "docstrings",
        description="docstrings (of Python's own library), glyphs (images of matplotlib's fonts), a datasets "
        "name, or a local file or folder.",
    )
    subset: str | None = Field(None, description="Configuration of a data set that has several.")
    split: str | None = Field(None, description="A split, or a slice such as train[:1000]; train if absent.")
    modules: Many[str] | None = Field(
        None, description="Modules whose docstrings are read; a fixed list of 16 if absent."
    )
    max_rows_per_module: Count = Field(150, description="At most so many docstrings of each module.")
    max_rows: Count | None = Field(None, description="At most so many rows in all, drawn by the seed.")
    max_length: Count | None = Field(
        None,
        description="Tokens of a text at most, longer ones are cut; 128 if absent. Not for images.",
    )
    partitioner: Partitioner = Field(
        default_factory=Dirichlet, description="How rows are divided among clients (flwr-datasets)."
    )
    num_clients: Count = Field(32, description="Clients that the rows are divided among.")
    test_share: PartShare = Field(0.2, description="Share of the rows kept for testing.")
    validation_share: PartShare = Field(0.0, description="Share of the rows kept for validation.")
    per_client: bool = Field(
        False, description="Take test and validation rows from every client's own, not from all alike."
    )
    unseen_clients: NotNegative = Field(
        0, description="Clients that never train: a number, or below 1 a share of all clients."
    )


class FleetSection(Section):
    """The devices."""

    name: NameOrPath = Field(
        "edge", description="edge, phones, silos, or a file: a YAML mix, a CSV or Parquet table of clients."
    )
    memory_share: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Share of each device's RAM that this job may use; the mix's own if absent."
    )
    correlation: Share | None = Field(
        None, description="How far memory, compute and links go together, 0 to 1; the mix's own if absent."
    )
    num_clients: Count | None = Field(
        None,
        description="Devices of a simulation, each with as many rows as one of the data's clients, drawn by "
        "the seed; one for each of these if absent.",
    )
    size_follows_memory: bool = Field(False, description="Clients with more memory hold more rows.")
