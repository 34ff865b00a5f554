"""Building blocks of a page. Everything that comes from data is escaped; plotly.js is inlined once."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from numpy.typing import NDArray

from featlens._version import __version__
from featlens.files import write_text

__all__ = ["Page", "explorer", "figure", "image", "note", "table"]

_numbers = itertools.count(1)


class Page:
    """A page of titled sections.

    Parameters
    ----------
    title, lead
        Heading and the sentence below it.
    """

    def __init__(self, title: str, lead: str) -> None:
        self.title, self.lead = title, lead
        self._sections: list[tuple[str, str, list[Markup]]] = []
        self._used: list[str] = []

    def use(self, *names: str) -> None:
        """Put scripts (``.js``) and styles (``.css``) of the templates into the head, each once, in order."""
        self._used += [name for name in names if name not in self._used]

    def section(self, title: str, *parts: Markup) -> None:
        """Append a section."""
        name = "".join(letter if letter.isalnum() else "-" for letter in title.lower())
        taken = {anchor for anchor, _, _ in self._sections}
        while name in taken:
            name += "-"
        self._sections.append((name, title, list(parts)))

    def html(self) -> str:
        """The whole page as text."""
        from plotly.offline import get_plotlyjs

        loader = PackageLoader("featlens.report", "templates")
        environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)

        def sources(ending: str) -> list[Markup]:
            names = [name for name in self._used if name.endswith(ending)]
            # Our own files: nothing in them comes from data.
            return [Markup(loader.get_source(environment, name)[0]) for name in names]

        return environment.get_template("page.html.j2").render(
            title=self.title,
            lead=self.lead,
            sections=self._sections,
            plotly=Markup(get_plotlyjs()),
            scripts=sources(".js"),
            styles=sources(".css"),
            version=__version__,
        )

    def write(self, path: os.PathLike[str] | str) -> Path:
        """Write the page atomically and return its path."""
        write_text(path, self.html())
        return Path(path)


def _script_json(value: Any) -> Markup:
    """JSON that cannot end the script element it stands in."""
    text = (
        json.dumps(value, allow_nan=False)
        .replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("&", "\\u0026")
    )
    # Every character that HTML could read was replaced above.
    return Markup(text)


def _plain(value: Any) -> Any:
    """Numbers, lists and dicts only; NaN becomes None."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def figure(chart: Any, caption: str, height: int = 440) -> Markup:
    """A plotly figure with a caption; colours follow the reader's light or dark scheme."""
    spec = json.loads(chart.to_json())
    spec["layout"].pop("template", None)
    spec["layout"] |= {"height": height, "autosize": True}
    name = f"plot{next(_numbers)}"
    return Markup(
        '<figure><div class="plot" id="{name}" style="height:{height}px" role="img" '
        'aria-label="{caption}"></div>'
        "<figcaption>{caption}</figcaption></figure><script>featlensPlot('{name}', {spec});</script>"
    ).format(name=name, height=height, caption=caption, spec=_script_json(_plain_text(spec)))


def _plain_text(spec: Any) -> Any:
    """Escape every text of a plotly figure: plotly reads a subset of HTML in titles, names and ticks."""
    if isinstance(spec, dict):
        return {key: _plain_text(value) for key, value in spec.items()}
    if isinstance(spec, list):
        return [_plain_text(value) for value in spec]
    if isinstance(spec, str) and "<" in spec:
        kept = spec
        for tag in ("<br>", "<extra></extra>", "<b>", "</b>"):
            kept = kept.replace(tag, tag.replace("<", "\0").replace(">", "\1"))
        return kept.replace("<", "&lt;").replace(">", "&gt;").replace("\0", "<").replace("\1", ">")
    return spec


def explorer(
    panels: Mapping[str, Mapping[str, Any]],
    choices: Sequence[str],
    caption: str,
    axes: tuple[str, str],
    unit: str,
) -> Markup:
    """A heat map with one drop-down menu for each choice.

    Parameters
    ----------
    panels
        By key: the chosen values joined by ``|``. Each holds ``x``, ``y``, ``z`` (rows by y) and, for the
        hover text, ``text`` of the shape of z.
    choices
        Names of the menus, in the order in which their values stand in the keys.
    caption, axes, unit
        Caption, titles of x and y axis, title of the colour bar.
    """
    name = f"plot{next(_numbers)}"
    menus = []
    for position, choice in enumerate(choices):
        values = list(dict.fromkeys(key.split("|")[position] for key in panels))
        # Without an attribute the value would be the text with its white space tidied up.
        options = Markup("").join(
            Markup('<option value="{0}">{0}</option>').format(value) for value in values
        )
        menus.append(
            Markup('<label>{choice} <select data-for="{name}">{options}</select></label>').format(
                choice=choice, name=name, options=options
            )
        )
    spec = {"panels": _plain(panels), "axes": list(axes), "unit": unit}
    return Markup(
        '<figure><div class="menus">{menus}</div>'
        '<div class="plot" id="{name}" style="height:520px" role="img" aria-label="{caption}"></div>'
        "<figcaption>{caption}</figcaption></figure><script>featlensExplorer('{name}', {spec});</script>"
    ).format(menus=Markup("").join(menus), name=name, caption=caption, spec=_script_json(_plain_text(spec)))


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> Markup:
    """A table; numbers are aligned to the right."""
    numeric = [all(_looks_numeric(row[column]) for row in rows) for column in range(len(headers))]
    kinds = [Markup(' class="number"') if number else Markup("") for number in numeric]

    def line(tag: str, cells: Sequence[Any]) -> Markup:
        pair = Markup("<{0}{1}>{2}</{0}>")
        inner = Markup("").join(pair.format(tag, kind, cell) for kind, cell in zip(kinds, cells, strict=True))
        return Markup("<tr>{}</tr>").format(inner)

    head = line("th", headers)
    body = Markup("").join(line("td", row) for row in rows)
    # Not a <caption>: on narrow screens it would scroll out of sight with the table.
    title = Markup('<p class="note">{}</p>').format(caption) if caption else Markup("")
    label = Markup(' aria-label="{}"').format(caption) if caption else Markup("")
    scrolled = Markup(
        '<div class="scroll" tabindex="0"><table{}><thead>{}</thead><tbody>{}</tbody></table></div>'
    )
    return title + scrolled.format(label, head, body)


def _looks_numeric(value: Any) -> bool:
    if isinstance(value, str):
        return value == "-" or (
            (value[:1].isdigit() or value[:1] in ("-", "+")) and value[-1:] in "0123456789)"
        )
    return isinstance(value, (int, float))


def note(text: str, kind: str = "note") -> Markup:
    """A paragraph; ``kind`` is ``"note"``, ``"warning"`` or ``"plain"``."""
    return Markup('<p class="{}">{}</p>').format(kind, text)


def image(pixels: NDArray[Any], caption: str, detail: str = "", scale: int = 3) -> Markup:
    """A picture from (H, W) or (H, W, 3) values in [0, 255], enlarged by whole pixels."""
    return Markup(
        '<figure class="picture"><img src="data:image/png;base64,{data}" width="{width}" '
        'height="{height}" alt="{caption}">'
        "<figcaption><b>{caption}</b> {detail}</figcaption></figure>"
    ).format(
        data=base64.b64encode(png(pixels)).decode(),
        width=pixels.shape[1] * scale,
        height=pixels.shape[0] * scale,
        caption=escape(caption),
        detail=escape(detail),
    )


def png(pixels: NDArray[Any]) -> bytes:
    """PNG file of (H, W) or (H, W, 3) values in [0, 255]."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()
