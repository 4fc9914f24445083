"""Checks for other people's policies and aggregation rules; `fedray check` runs them.

``check_policy("policies/mine.py").to_text()`` and ``check_rule(Mine()).to_text()`` end with what is shown.
"""

from importlib.util import find_spec

from fedray.errors import ConfigError

if find_spec("hypothesis") is None:
    raise ConfigError(
        "fedray check draws its cases with hypothesis, which is not installed; install it with: pip install "
        "'fedray[testing]'."
    )

from fedray.testing.findings import Finding, Report
from fedray.testing.policies import check_policy
from fedray.testing.rules import check_rule
from fedray.testing.targets import check

__all__ = ["Finding", "Report", "check", "check_policy", "check_rule"]
