"""The clients of a configuration: rows, who holds which of them, and on which devices."""

from typing import assert_never

import datasets
import numpy as np

from fedray.config.data_sections import DataSection
from fedray.config.sections import Config
from fedray.fleet import Fleet, load_fleet
from fedray.training.divisions import Dirichlet, Iid, NaturalId, Partitioning, Pathological
from fedray.training.partitions import HoldOut, Partitions, partition
from fedray.training.sources import Source, load_rows


def rows_of(config: Config) -> datasets.Dataset:
    """All rows that the configuration names. Raises FedrayError for a source that cannot be read."""
    data = config.data
    source = Source(
        name=data.source,
        subset=data.subset,
        split=data.split,
        modules=data.modules,
        max_rows_per_module=data.max_rows_per_module,
        max_rows=data.max_rows,
    )
    return load_rows(source, seed=config.seed)


def partitions_of(config: Config, rows: datasets.Dataset, fleet: Fleet | None) -> Partitions:
    """The clients' rows; with a fleet, larger parts for clients that rank higher in size of data."""
    data = config.data
    hold_out = HoldOut(
        test_share=data.test_share,
        validation_share=data.validation_share,
        per_client=data.per_client,
        unseen_clients=data.unseen_clients,
    )
    size_rank = None if fleet is None else fleet.data_size_rank(np.arange(len(fleet)))
    return partition(rows, _partitioning(data), hold_out, seed=config.seed, size_rank=size_rank)


def _partitioning(data: DataSection) -> Partitioning:
    section = data.partitioner
    match section.name:
        case "iid":
            return Iid(num_clients=data.num_clients)
        case "dirichlet":
            return Dirichlet(
                num_clients=data.num_clients,
                label_column=section.label_column,
                alpha=section.alpha,
                min_partition_size=section.min_partition_size,
            )
        case "natural_id":
            return NaturalId(
                column=section.column, min_rows=section.min_rows, max_clients=section.max_clients
            )
        case "pathological":
            return Pathological(
                num_clients=data.num_clients,
                label_column=section.label_column,
                num_classes_per_partition=section.num_classes_per_partition,
            )
        case _:
            assert_never(section.name)


def fleet_of(config: Config, num_clients: int) -> Fleet:
    """So many devices of the fleet that the configuration names. Raises ConfigError."""
    section = config.fleet
    return load_fleet(
        section.name,
        num_clients,
        config.seed,
        memory_share=section.memory_share,
        correlation=section.correlation,
    )
