"""Which sites of which models are embedded at which sigma, settled before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featlens.comparison.panel import Panel
from featlens.comparison.result import Comparison
from featlens.comparison.side import same_level
from featlens.embedding import METHODS
from featlens.errors import UsageError, choices_hint
from featlens.report.linked import depth_pairs

__all__ = ["EmbeddingRequest", "Place", "SiteChoice"]

MOST_PAIRS = 6
"""Pairs of models that are embedded."""

SiteChoice = str | tuple[str, str] | Sequence[str | tuple[str, str]] | None


@dataclass(frozen=True)
class Place:
    """One picture: two models, a site of each, a sigma of each."""

    a: str
    b: str
    site_a: str
    site_b: str
    sigma_a: float
    sigma_b: float

    @property
    def said(self) -> str:
        """What the menu calls it."""
        site = self.site_a if self.site_a == self.site_b else f"{self.site_a} with {self.site_b}"
        sigma = (
            f"{self.sigma_a:g}" if self.sigma_a == self.sigma_b else f"{self.sigma_a:g} and {self.sigma_b:g}"
        )
        return f"{self.a} and {self.b}: {site}, sigma {sigma}"


@dataclass(frozen=True)
class EmbeddingRequest:
    """What is to be embedded, settled before anything is computed."""

    methods: tuple[str, ...]
    places: tuple[Place, ...]
    left_out: int
    """Pairs of models beyond the first six."""
    rows: int
    seed: int

    @classmethod
    def settle(
        cls,
        comparison: Comparison,
        embedding: str,
        site: SiteChoice,
        sigma: float | Sequence[float] | None,
        rows: int,
        seed: int,
    ) -> EmbeddingRequest:
        """Resolve names and levels; an error names the nearest choices."""
        known = (*METHODS, "none")
        if embedding not in known:
            raise UsageError(
                f"report: unknown embedding {embedding!r}: {choices_hint(str(embedding), known)}"
            )
        methods = {"umap": ("umap", "pca"), "pca": ("pca",), "none": ()}[embedding]
        levels = _levels(comparison, sigma)
        first = {(panel.a, panel.b): panel for panel in reversed(comparison.panels)}
        places = []
        for pair in comparison.pairs[:MOST_PAIRS] if methods else ():
            panel = first[pair]
            for level in levels:
                low, high = comparison.levels[level]
                for site_a, site_b in _sites(panel, level, site):
                    places.append(Place(panel.a, panel.b, site_a, site_b, low, high))
        left_out = max(len(comparison.pairs) - MOST_PAIRS, 0)
        return cls(methods, tuple(dict.fromkeys(places)), left_out, rows, seed)


def _levels(comparison: Comparison, sigma: float | Sequence[float] | None) -> list[int]:
    """Positions of the levels to embed."""
    equal = [k for k, (a, b) in enumerate(comparison.levels) if a == b] or list(range(len(comparison.levels)))
    if sigma is None:
        return [equal[len(equal) // 2]]
    there = np.array([comparison.levels[k][0] for k in equal])
    out = []
    for wanted in [sigma] if isinstance(sigma, (int, float)) else sigma:
        found = np.flatnonzero(same_level(there, float(wanted)))
        if not len(found):
            raise UsageError(
                f"report: no sigma {float(wanted):g} to embed; choose from "
                f"{', '.join(f'{value:g}' for value in dict.fromkeys(there.tolist()))}"
            )
        out.append(equal[int(found[0])])
    return list(dict.fromkeys(out))


def _sites(panel: Panel, level: int, wanted: SiteChoice) -> list[tuple[str, str]]:
    """Sites of A and B to embed."""
    if wanted is None:
        pairs = depth_pairs(panel)
        if pairs:
            return [(panel.sites_a[pairs[-1][0]], panel.sites_b[pairs[-1][1]])]
        return [_with_best(panel, level, panel.sites_a[-1])]
    # A tuple of two names is one choice, a list several.
    several = [wanted] if isinstance(wanted, (str, tuple)) else list(wanted)
    out = []
    for choice in several:
        a, b = (choice, None) if isinstance(choice, str) else choice
        for name, sites, model in ((a, panel.sites_a, panel.a), (b, panel.sites_b, panel.b)):
            if name is not None and name not in sites:
                raise UsageError(
                    f"report: no site {name!r} of {model!r} to embed: {choices_hint(name, list(sites))}"
                )
        out.append((a, b) if b else (a, a) if a in panel.sites_b else _with_best(panel, level, a))
    return out


def _with_best(panel: Panel, level: int, site: str) -> tuple[str, str]:
    return site, panel.sites_b[panel.best(level, panel.sites_a.index(site)) or 0]
