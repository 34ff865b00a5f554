"""The page of one comparison."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from featlens.comparison.figures import sigma_curves
from featlens.comparison.result import Comparison
from featlens.report.page import Page, explorer, figure, note, table

__all__ = ["comparison_panels", "comparison_report"]


def comparison_panels(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """Panels for :func:`featlens.report.explorer`, one a sigma."""
    data = comparison.data
    sites_a, sites_b = data["site_a"].values.tolist(), data["site_b"].values.tolist()
    out = {}
    for index, sigma in enumerate(data["sigma"].values.tolist()):
        arrays = [data[name].values[index] for name in ("value", "null_high", "p_family")]
        out[f"{sigma:g}"] = panel(sites_a, sites_b, *arrays)
    return out


def panel(
    sites_a: list[str], sites_b: list[str], value: Any, null_high: Any, p_family: Any
) -> dict[str, Any]:
    """One heat map; cells that are not above their null (family-wise p > 0.05) are left grey."""
    value, null_high, p_family = (
        np.asarray(array, dtype=np.float64) for array in (value, null_high, p_family)
    )
    shown = np.where(np.nan_to_num(p_family, nan=0.0) > 0.05, np.nan, value)
    text = [
        [
            f"CKA {value[i, j]:.3f}<br>null: 95 % below {null_high[i, j]:.3f}<br>"
            f"family-wise p {p_family[i, j]:.3f}"
            for j in range(len(sites_b))
        ]
        for i in range(len(sites_a))
    ]
    return {"x": sites_b, "y": sites_a, "z": shown, "text": text}


def comparison_report(comparison: Comparison, path: os.PathLike[str] | str) -> Path:
    """Write the page of a comparison."""
    a, b = comparison.names
    page = Page(
        f"{a} and {b}, site by site",
        f"Debiased linear CKA over {comparison.n} samples, {a} (A) against {b} (B).",
    )
    for warning in comparison.warnings:
        page.section("Warning", note(warning, "warning"))
    page.section(
        "All pairs of sites",
        note(
            "Hover for the value, the null level (permuted samples) and the family-wise p-value. Grey "
            "cells are not above their null."
        ),
        explorer(
            comparison_panels(comparison),
            ["sigma"],
            "CKA of every site of A with every site of B",
            (f"site of {b}", f"site of {a}"),
            "CKA",
        ),
    )
    if comparison.same_site():
        page.section(
            "Same site, by noise level",
            figure(sigma_curves(comparison), "CKA of sites of the same name against sigma"),
        )
    rows = [
        (side.upper(), key, str(value))
        for side in ("a", "b")
        for key, value in comparison.provenance[side].items()
    ]
    rows += [
        ("", "permutations", comparison.provenance["permutations"]),
        ("", "seed", comparison.provenance["seed"]),
    ]
    page.section("Provenance", table(["side", "what", "value"], rows))
    return page.write(path)
