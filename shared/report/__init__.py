"""Run folders as pages: one self-contained HTML file for a run, or for several runs side by side."""

from shared.report.pages import build_report, compare_runs

__all__ = ["build_report", "compare_runs"]
