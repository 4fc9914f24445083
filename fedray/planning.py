"""Plans: each client's offers, prices and choice in round 1, without a weight loaded or a step run."""

import json
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from fedray.adapter import Adapter
from fedray.assignment import Assignment
from fedray.config import Config
from fedray.environment import CACHE_DIR
from fedray.policy import Offers
from fedray.progress import begun
from fedray.readiness import Readiness
from fedray.rounds import pricing_of
from fedray.scene import Scene, set_scene
from fedray.scheduler import Schedule, ask_menu, decide, price_menu, refuse_if_nothing_fits
from fedray.units import show_bytes, show_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedClient:
    """One client of the plan; prices are those of its assignment, None where it has none.

    Attributes:
        num_offers: entries of the menu that fit it.
        reason: why it has no assignment.
    """

    client_id: int
    device_class: str
    memory_bytes: int
    assignment: Assignment | None
    num_offers: int
    peak_bytes: int | None
    virtual_seconds: float | None
    joules: float | None
    up_bytes: int | None
    down_bytes: int | None
    provision_bytes: int | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the policy would give every client of the fleet in round 1."""

    clients: tuple[PlannedClient, ...]
    menu: tuple[Assignment, ...]

    def to_json(self) -> str:
        """``{"clients": [...]}``: what each is given and its price; all null, with a reason, for nothing."""
        return json.dumps({"clients": [_as_json(client) for client in self.clients]}, indent=2)

    def to_table(self) -> str:
        """For a terminal."""
        table = Table(title=f"Round 1, {len(self.menu)} assignments on the menu")
        for name in ("client", "device", "memory"):
            table.add_column(name)
        table.add_column("fitting", justify="right")
        table.add_column("assignment")
        for name in ("peak", "virtual time", "up", "down", "provision"):
            table.add_column(name, justify="right")
        for client in self.clients:
            table.add_row(*_cells(client))
        console = Console(width=160)
        with console.capture() as captured:
            console.print(table)
        return captured.get()


def plan(config: Config, policy: object | None = None) -> Plan:
    """Price the whole fleet and ask the policy.

    Args:
        config: checked already.
        policy: given in Python, in place of the one that the configuration names.

    Raises:
        FedrayError: the configuration is wrong, nothing fits anybody, or the policy's answer is refused.
    """
    scene = set_scene(config, CACHE_DIR, policy)
    everybody = np.arange(scene.num_clients)
    start = begun(len(everybody), Adapter(), preinstalled=config.provision == "preinstalled")
    pricing = pricing_of(scene, start, 1)
    menu = ask_menu(scene.policy, scene.view(1, ()))
    ready = Readiness(scene=scene, number=1, charges=start.charges, pricing=pricing)
    cohort = ready.cohort(everybody, 0.0)
    offers = price_menu(menu, cohort, pricing)
    refuse_if_nothing_fits(cohort, offers)
    schedule = decide(scene.policy, cohort, offers, {}, pricing, together=False)
    return Plan(clients=tuple(_clients(scene, offers, schedule)), menu=menu)


def _clients(scene: Scene, offers: Offers, schedule: Schedule) -> list[PlannedClient]:
    ids = np.arange(scene.num_clients)
    classes, memory = scene.fleet.device_class(ids), scene.fleet.device(ids).memory_bytes
    terms = schedule.terms
    planned = []
    for i, assignment in enumerate(schedule.decision.assignments):
        given = assignment is not None
        planned.append(
            PlannedClient(
                client_id=i,
                device_class=str(classes[i]),
                memory_bytes=int(memory[i]),
                assignment=assignment,
                num_offers=int(offers.fits[:, i].sum()),
                peak_bytes=int(terms.peak_bytes[i]) if given else None,
                virtual_seconds=float(terms.virtual_seconds[i]) if given else None,
                joules=float(terms.joules[i]) if given else None,
                up_bytes=int(terms.up_bytes[i]) if given else None,
                down_bytes=int(terms.down_bytes[i]) if given else None,
                provision_bytes=int(terms.provision_bytes[i]) if given else None,
                reason=schedule.left_out.get(i, ""),
            )
        )
    return planned


def _as_json(client: PlannedClient) -> dict[str, object]:
    given = client.assignment
    row: dict[str, object] = {
        "client_id": client.client_id,
        "memory_bytes": client.memory_bytes,
        "assignment": None if given is None else json.loads(given.to_json()),
        "peak_bytes": client.peak_bytes,
        "virtual_seconds": client.virtual_seconds,
        "up_bytes": client.up_bytes,
        "down_bytes": client.down_bytes,
        "provision_bytes": client.provision_bytes,
    }
    return row if given is not None else {**row, "reason": client.reason}


def _cells(client: PlannedClient) -> list[str]:
    start = [
        str(client.client_id),
        client.device_class,
        show_bytes(client.memory_bytes),
        str(client.num_offers),
    ]
    if client.assignment is None:
        return [*start, client.reason, "", "", "", "", ""]
    sizes = (client.up_bytes, client.down_bytes, client.provision_bytes)
    return [
        *start,
        str(client.assignment),
        show_bytes(client.peak_bytes or 0),
        show_seconds(client.virtual_seconds or 0),
        *(show_bytes(size or 0) for size in sizes),
    ]
