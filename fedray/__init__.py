"""fedray trains one pretrained model across many unequal devices: every client gets what fits it.

``fedray.run("examples/quickstart.yaml", out="runs/first", overrides=["rounds.num_rounds=3"])`` trains;
``fedray.plan("examples/quickstart.yaml")`` says what every device would get, without training.
``fedray.compare("examples/quickstart.yaml", out="runs/both", policies=["hetlora", "fedra"])`` runs both.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedray.api import check, compare, examine, export, plan, resume, run, simulate, write_report
    from fedray.config import Config, load_config

__all__ = [
    "Config",
    "__version__",
    "check",
    "compare",
    "examine",
    "export",
    "load_config",
    "plan",
    "resume",
    "run",
    "simulate",
    "write_report",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Looked up on first use, so that a policy, or a test of the deciding code, imports nothing else.
    if name not in __all__:
        raise AttributeError(f"module 'fedray' has no attribute {name!r}; it has {', '.join(__all__)}")
    from fedray import api

    return vars(api)[name]
