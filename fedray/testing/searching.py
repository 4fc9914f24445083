"""Cases of which something is true, by hypothesis: whether there is one, and the smallest that is found."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import TypeVar

from hypothesis import Phase, find, settings
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.errors import Flaky, NoSuchExample
from hypothesis.strategies import SearchStrategy

Case = TypeVar("Case")


def any_case(
    strategy: SearchStrategy[Case], wanted: Callable[[Case], bool], *, examples: int, known: Iterable[Case]
) -> bool:
    """Whether a case is wanted, of those known and of so many drawn; the same ones in every run."""
    if any(wanted(case) for case in known):
        return True
    return _found(strategy, wanted, examples=examples, tries=0) is not None


def smallest(
    strategy: SearchStrategy[Case],
    wanted: Callable[[Case], bool],
    *,
    examples: int,
    known: Iterable[Case],
    tries: int,
) -> Case | None:
    """The case found that is wanted and takes fewest words, drawn and made smaller or one of those known.

    Args:
        strategy: draws cases.
        wanted: what is looked for.
        examples: drawn at most.
        known: cases that are not drawn.
        tries: to make a drawn one smaller, at most; hypothesis by itself would take minutes.
    """
    drawn = _found(strategy, wanted, examples=examples, tries=tries)
    found = [case for case in (drawn, *known) if case is not None and wanted(case)]
    return min(found, key=lambda case: len(str(case)), default=drawn)


@contextmanager
def leaving_no_files() -> Iterator[None]:
    """Hypothesis keeps what it learnt of the code in a folder where it is run; here in one that goes away."""
    with TemporaryDirectory() as folder:
        set_hypothesis_home_dir(folder)
        try:
            yield
        finally:
            set_hypothesis_home_dir(None)


class _Enough(BaseException):
    """Ends a search, through hypothesis, which takes any Exception for a case that is wanted."""


def _found(
    strategy: SearchStrategy[Case], wanted: Callable[[Case], bool], *, examples: int, tries: int
) -> Case | None:
    last: Case | None = None
    left = tries

    def remembered(case: Case) -> bool:
        nonlocal last, left
        left -= last is not None
        if left < 0:
            raise _Enough
        is_wanted = wanted(case)
        if is_wanted:
            last = case
        return is_wanted

    phases = (Phase.generate, Phase.shrink) if tries else (Phase.generate,)
    chosen = settings(max_examples=examples, database=None, deadline=None, derandomize=True, phases=phases)
    try:
        return find(strategy, remembered, settings=chosen)
    except NoSuchExample:
        return None
    except (_Enough, Flaky):
        # Flaky: what is tried is not the same twice, so there is no smallest case; but there is one.
        return last
