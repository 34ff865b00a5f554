"""The page of distance against the number of candidates."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featlens.files import make_folder
from featlens_trainers.evaluation.cards import Card

__all__ = ["candidates_figure", "write_candidates_page"]

SHOWN = ("frechet", "kid", "precision", "recall", "density", "coverage")
TITLES = {"frechet": "Frechet distance", "kid": "KID"}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
CAPTION = (
    "Each metric against the number of candidates k of which the ratio network keeps one. Bars: two standard "
    "errors. Frechet distance and KID: smaller is better; the others: larger is better."
)


def candidates_figure(cards: Sequence[Card]) -> Any:
    """Plotly figure: one panel a metric, k on a logarithmic axis."""
    from plotly.subplots import make_subplots

    names = [name for name in SHOWN if name in cards[0].values]
    chart = make_subplots(
        rows=2, cols=3, subplot_titles=[TITLES.get(name, name) for name in names], vertical_spacing=0.2
    )
    ks = [card.best_of for card in cards]
    for index, name in enumerate(names):
        errors = [2 * card.errors.get(name, 0.0) for card in cards]
        chart.add_scatter(
            x=ks,
            y=[card.values[name] for card in cards],
            error_y={"type": "data", "array": errors, "visible": any(errors)},
            mode="lines+markers",
            line={"color": COLOURS[index]},
            name=name,
            showlegend=False,
            row=index // 3 + 1,
            col=index % 3 + 1,
        )
    chart.update_xaxes(type="log", tickvals=ks, ticktext=[str(k) for k in ks], title_text="k")
    # The tool bar of the picture stands above the titles of the panels.
    chart.update_layout(margin={"t": 80})
    return chart


def write_candidates_page(path: os.PathLike[str] | str, cards: Sequence[Card]) -> None:
    """Write a page that holds the figure and its table, and loads nothing from elsewhere."""
    from featlens.report.page import Page, figure, note, table

    first = cards[0]
    lead = (
        f"{first.generated:,} images of {first.run} against {first.reference:,} of "
        f"{first.reference_images['name']}, features of {first.extractor['name']}."
    )
    page = Page("Best of k", lead)
    page.section(
        "Distance against candidates",
        figure(candidates_figure(cards), CAPTION, 560),
        table(["k", "evaluations", *first.values], [_row(card) for card in cards]),
        *(note(line) for line in first.warnings),
    )
    make_folder(Path(path).parent)
    page.write(path)


def _row(card: Card) -> list[str]:
    return [str(card.best_of), str(card.network_evaluations), *(said(card, name) for name in card.values)]


def said(card: Card, name: str) -> str:
    """A metric with its error.

    Two numbers of four digits: more would be noise.
    """
    value = f"{card.values[name]:.4f}"
    return f"{value} ± {card.errors[name]:.4f}" if name in card.errors else value
