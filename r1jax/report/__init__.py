"""A run to look at: report.html, the table of its stages, their figure."""

from r1jax.report.figure import draw_stages
from r1jax.report.page import write_report
from r1jax.report.table import across_seeds, format_table, stage_table

__all__ = ["across_seeds", "draw_stages", "format_table", "stage_table", "write_report"]
