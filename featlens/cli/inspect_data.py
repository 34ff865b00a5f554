"""The table that ``featlens inspect`` prints of a set of images."""

from __future__ import annotations

from typing import Any

__all__ = ["data_table"]

MOST_CLASSES = 20
"""Classes whose counts are printed one by one; all are in the JSON."""


def data_table(found: dict[str, Any]) -> str:
    """Lines for readers of :class:`featlens.inspection.DataReport` as a dictionary."""
    from featlens.store.open import shown

    # What a source says of itself is made safe: it may come from anybody.
    part = f" ({shown(found['split'])})" if found["split"] else ""
    read = "" if found["read"] == found["total"] else f", {found['read']:,} of them read"
    channels = [
        f"{_number(mean)} +- {_number(std)}" for mean, std in zip(found["mean"], found["std"], strict=True)
    ]
    low, high = found["range"]
    lines = [
        f"images          {found['total']:,} of {shown(found['data'])}{part}{read}",
        f"shape           {'x'.join(map(str, found['shape']))}",
        f"stored          {found['dtype']}, {_number(low)} to {_number(high)}, taken as {found['values']}",
        f"channels        {', '.join(channels)} (mean +- standard deviation in the network's range)",
        f"sigma_data      {_number(found['sigma_data'])} ({found['why']})",
        *_labels(found["labels"]),
        *_duplicates(found["duplicates"], shown),
        *_not_finite(found, shown),
    ]
    return "\n".join([*lines, *(f"note: {shown(line, most=400)}" for line in found["advice"])])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _labels(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return ["labels          none"]
    counts = found["counts"]
    lines = [
        f"labels          {found['labelled']:,} images in {found['classes']} classes, "
        f"{min(counts):,} to {max(counts):,} a class, imbalance {found['imbalance']:.3g}"
    ]
    if len(counts) <= MOST_CLASSES:
        lines.append("  " + ", ".join(f"{label}: {count:,}" for label, count in enumerate(counts)))
    if found["missing"]:
        first = ", ".join(map(str, found["missing"][:MOST_CLASSES]))
        more = ", ..." if len(found["missing"]) > MOST_CLASSES else ""
        lines.append(f"  no images of {first}{more}")
    return lines


def _duplicates(found: dict[str, Any], shown: Any) -> list[str]:
    count = f"{found['count']:,}" if found["count"] else "none"
    groups = (" = ".join(shown(name) for name in group) for group in found["first"])
    return [f"duplicates      {count}", *(f"  {group}" for group in groups)]


def _not_finite(found: dict[str, Any], shown: Any) -> list[str]:
    if not found["not_finite"]:
        return ["NaN             none"]
    names = ", ".join(shown(name) for name in found["first_not_finite"])
    more = ", ..." if found["not_finite"] > len(found["first_not_finite"]) else ""
    return [f"NaN             {found['not_finite']:,} images: {names}{more}"]
