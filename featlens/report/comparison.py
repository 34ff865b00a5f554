"""The page of one comparison."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from featlens.comparison.result import Comparison
from featlens.report.embedding_request import EmbeddingRequest, SiteChoice
from featlens.report.embedding_section import embedding_section
from featlens.report.facts import compared, lead, provenance, title, warning_list, warnings
from featlens.report.linked import Linked
from featlens.report.page import Page, note

__all__ = ["comparison_report"]


def comparison_report(
    comparison: Comparison,
    path: os.PathLike[str] | str,
    *,
    models: Mapping[str, Any] | None = None,
    embedding: str = "umap",
    embed_site: SiteChoice = None,
    embed_sigma: float | Sequence[float] | None = None,
    rows: int = 2000,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Write the page of a comparison, one file that opens offline, and return its path.

    Parameters
    ----------
    comparison
        What :func:`featlens.compare` returned.
    path
        The page. UMAP coordinates are kept beside it, in ``STEM.embedding.json``, and used again where the
        features are the same.
    models
        Features by model, for the embedding; by default the files that the comparison was made from.
    embedding
        ``"umap"`` (and PCA), ``"pca"`` alone or ``"none"``.
    embed_site
        Site to embed, or several: a name that both models have, or (site of A, site of B). By default the
        last site that both have, or else the last site of A with its best match.
    embed_sigma
        Noise level (of A) to embed, or several; by default the middle one.
    rows
        A random subset of this many samples is embedded if there are more.
    seed
        Of that subset and of UMAP.
    progress
        Called with a line of text before what takes long.
    """
    request = EmbeddingRequest.settle(comparison, embedding, embed_site, embed_sigma, rows, seed)
    page = Page(title(comparison), lead(comparison))
    page.use("comparison.css", "comparison_figures.js", "comparison.js", "embedding.js")
    linked = Linked(comparison)
    _say_what_was_compared(page, comparison, linked)
    _show_similarity(page, linked)
    if request.methods:
        page.section(
            "Both models in one plane", *embedding_section(comparison, path, models, request, progress)
        )
    page.section("Provenance", provenance(comparison))
    return page.write(path)


def _say_what_was_compared(page: Page, comparison: Comparison, linked: Linked) -> None:
    said = warning_list(comparison)
    if len(linked.panels) < len(comparison.panels):
        said.append(
            f"this page shows the first {len(linked.panels)} of {len(comparison.panels)} pairs and measures; "
            "save the comparison to a .nc file for all, or choose fewer sites"
        )
    page.section("Warnings", warnings(said))
    page.section("What was compared", *compared(comparison))


def _show_similarity(page: Page, linked: Linked) -> None:
    page.section(
        "Every site with every site",
        Markup("<noscript><p>{}</p></noscript>").format(
            "The figures need JavaScript; the tables of best matches do not."
        ),
        note(
            "Point at a cell for its interval, null level and p-values; it is marked in all figures. Click "
            "to keep it marked, or choose both sites in the menus."
        ),
        linked.figures(),
    )
    page.section(
        "Best matches",
        note(
            "For each site of the first model, the site of the second that is most like it. Stars: "
            "family-wise p at most 0.05 (*), 0.01 (**), 0.001 (***); they hold for the search over all sites "
            "of a noise level. Null 95 %: what 95 % of permutations stay below (of distances null 5 %: stay "
            "above). q: false discovery rate over all cells of a measure and pair."
        ),
        linked.matches(),
        linked.script(),
    )
