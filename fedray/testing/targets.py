"""What `fedray check NAME` checks: the policy or the rule of a name, or what a file holds."""

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from fedray.aggregation.presets import PRESETS, make_aggregation
from fedray.aggregation.rule_file import rule_classes
from fedray.errors import ConfigError
from fedray.policy_file import named_files
from fedray.python_file import place_of, run_file
from fedray.shipped import shipped
from fedray.testing.claims import claim_of, shown_by
from fedray.testing.findings import Report
from fedray.testing.policies import check_policy
from fedray.testing.rules import check_rule
from fedray.testing.searching import leaving_no_files


def check(target: str, options: Mapping[str, Any] | None = None, *, examples: int = 50) -> list[Report]:
    """Check a policy, a rule, or both where a name stands for both.

    Args:
        target: a shipped policy's name, an aggregation's, or the path of a Python file with either.
        options: of the policy or the rule.
        examples: cases drawn for each.

    Raises:
        FedrayError: there is no such thing, or it cannot be loaded.
    """
    with leaving_no_files():
        return _reports(target, dict(options or {}), examples)


def _reports(target: str, given: dict[str, Any], examples: int) -> list[Report]:
    if target.endswith(".py") or "/" in target:
        return [_of_file(Path(target), given, examples)]
    reports = []
    policies = named_files(shipped("policies"))
    if target in policies:
        reports.append(_of_file(policies[target], given, examples))
    if target in PRESETS:
        # Where a name stands for both, options are the policy's.
        rule, paper = make_aggregation(target, {} if reports else given), PRESETS[target].paper
        report = check_rule(rule, examples=examples)
        reports.append(replace(report, subject=f"{report.subject} (arXiv {paper})") if paper else report)
    if not reports:
        names = sorted({*policies, *PRESETS})
        near = difflib.get_close_matches(target, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"No policy and no aggregation is named {target!r}; there are {', '.join(names)}, or give the "
            f"path of a .py file.{hint}"
        )
    return reports


def _of_file(file: Path, options: Mapping[str, Any], examples: int) -> Report:
    if not file.is_file():
        raise ConfigError(f"There is no file {file} to check; give the path of a policy's or a rule's.")
    try:
        module = run_file(file, "checked")
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{file} does not run: {said}, at {place_of(error, str(file))}.") from error
    rules = rule_classes(module)
    claim = claim_of([module, *rules, *_policy_classes(module)], file)
    if rules:
        rule = make_aggregation(str(file), options)
        report = check_rule(rule, examples=examples)
        report = replace(report, subject=f"{report.subject} ({file})")
    else:
        report = check_policy(file, options, examples=examples)
    return replace(report, claim=claim, shown=shown_by(claim, file))


def _policy_classes(module: ModuleType) -> list[type]:
    kinds = [kind for kind in vars(module).values() if inspect.isclass(kind) and hasattr(kind, "assign")]
    return [kind for kind in kinds if kind.__module__ == module.__name__]
