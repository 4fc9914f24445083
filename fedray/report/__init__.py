"""One page that shows a run: it opens from disk, without a network or scripts."""

from fedray.report.page import write_report

__all__ = ["write_report"]
