"""Runs the rules that fit a subject. A rule is registered by being there.

Every public function of a module in `doctor/rules` whose one parameter is of the subject's type is
a rule. A table of rules was rejected: it is one more place to forget.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from holdtrue.doctor import rules
from holdtrue.errors import HoldtrueError
from holdtrue.findings import Finding

Rule = Callable[[Any], Iterable[Finding]]


def examine(subject: Any, where: str) -> list[Finding]:
    """What the rules for this kind of subject find. A rule that fails is a finding of its own."""
    found: list[Finding] = []
    for rule in rules_for(type(subject)):
        try:
            found += rule(subject)
        except HoldtrueError as error:  # the file asks a rule for more than its budget, say
            found += error.report.findings
        except Exception as error:  # a defect of ours must not hide what the other rules see
            found.append(_failed(rule, where, error))
    return found


def rules_for(kind: type) -> tuple[Rule, ...]:
    """The rules whose parameter is of this type, by family and in the order of the source."""
    return tuple(rule for rule in _rules() if _parameter(rule) is kind)


@cache
def _rules() -> tuple[Rule, ...]:
    return tuple(_defined())


def _defined() -> Iterator[Rule]:
    for info in iter_modules(rules.__path__):
        module = import_module(f"{rules.__name__}.{info.name}")
        for name, value in vars(module).items():
            own = inspect.isfunction(value) and value.__module__ == module.__name__
            if own and not name.startswith("_"):
                yield value


def _parameter(rule: Rule) -> Any:
    """The type of the first parameter; annotations are evaluated where they stand."""
    return next(iter(rule.__annotations__.values()), None)


def _failed(rule: Rule, where: str, error: Exception) -> Finding:
    name = f"{rule.__module__.rpartition('.')[2]}.{getattr(rule, '__name__', rule)}"
    return Finding(
        code="rule-failed",
        severity="warning",
        where=where,
        what=f"the check {name} could not be made",
        why=f"it ended in {type(error).__name__}: {str(error)[:200]}",
        fix="the other findings stand; this is a defect of holdtrue, please report it",
    )
