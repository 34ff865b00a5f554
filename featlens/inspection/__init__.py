"""What a set of images holds, before anything is trained on it: range, spread, labels, duplicates, damage.

Everything here works without torch.
"""

from featlens.inspection.data import inspect_data
from featlens.inspection.report import DataReport, Duplicates, LabelCoverage

__all__ = ["DataReport", "Duplicates", "LabelCoverage", "inspect_data"]
