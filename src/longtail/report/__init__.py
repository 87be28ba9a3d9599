"""Pages and pictures of finished runs."""

from longtail.report.comparing import ComparisonRow
from longtail.report.page import comparison_rows, write_comparison, write_report

__all__ = ["ComparisonRow", "comparison_rows", "write_comparison", "write_report"]
