"""The report: one page of tables, statistics and figures."""

from blockwise.analysis.report.page import write_report

__all__ = ["write_report"]
