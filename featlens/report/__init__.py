"""Self-contained HTML pages: results in, one file out that opens offline."""

from featlens.report.comparison import comparison_report
from featlens.report.page import Page, explorer, figure, image, note, table

__all__ = ["Page", "comparison_report", "explorer", "figure", "image", "note", "table"]
