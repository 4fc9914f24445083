"""Who the devices of a fleet are, and which kinds of work fit them."""

import numpy as np

from fedray.assignment import Assignment
from fedray.holdings import Holdings
from fedray.record import DeviceRecord
from fedray.scene import Scene
from fedray.scheduler import Pricing, price_menu
from fedray.seeds import generator

# Devices of a larger fleet are drawn: what is shown of them are shares and quantiles.
MOST = 5000


def devices_of(scene: Scene) -> list[DeviceRecord]:
    """A record for each device, by client; of a fleet larger than `MOST` so many, drawn by the seed.

    What fits is asked of the configuration's menu, not of what a policy makes of it.
    """
    ids = np.arange(scene.num_clients)
    if len(ids) > MOST:
        drawn = generator(scene.config.seed, "shown devices").choice(len(ids), MOST, replace=False)
        ids = np.sort(drawn)
    cohort = scene.cohort(1, ids)
    pricing = Pricing(footprint_of=scene.footprint, holdings=Holdings(scene.num_clients), server=scene.server)
    fits = price_menu(scene.menu, cohort, pricing).fits
    kinds = np.array([kind_of(entry, scene.anatomy.num_blocks) for entry in scene.menu])
    columns = {
        "client_id": ids,
        "device_class": cohort.device_class,
        "memory_bytes": cohort.device.memory_bytes,
        "flops_per_s": cohort.device.flops_per_s[scene.menu[0].dtype],
        "up_bps": cohort.device.up_bps,
        "down_bps": cohort.device.down_bps,
        "fits_whole": fits[kinds == "whole"].any(axis=0),
        "fits_part": fits[kinds == "part"].any(axis=0),
        "fits_cut": fits[kinds == "cut"].any(axis=0),
    }
    rows = zip(*(values.tolist() for values in columns.values()), strict=True)
    return [
        DeviceRecord(num_devices=scene.num_clients, **dict(zip(columns, row, strict=True))) for row in rows
    ]


def kind_of(entry: Assignment, num_blocks: int) -> str:
    """``cut`` with a server above, ``part`` alone with fewer blocks, narrower or in few bits, ``whole``."""
    if entry.split:
        return "cut"
    rounded = entry.weight_bits is not None or entry.sparsity > 0
    return "part" if len(entry.blocks) < num_blocks or entry.width is not None or rounded else "whole"
