"""Both models in one plane: which sites, where their features are read, and what was computed before."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from featlens._version import __version__
from featlens.comparison.result import Comparison
from featlens.comparison.side import Side, open_sides
from featlens.embedding import LEAST_UMAP, Embedding, choose_rows, embed_pair
from featlens.errors import FeatlensError, StoreError, UsageError
from featlens.files import write_text
from featlens.report.embedding_request import EmbeddingRequest, Place
from featlens.report.page import _script_json, note

__all__ = ["cache_path", "embedding_section"]

FORMAT = "featlens.embedding.1"
MOST_KEPT = 64
"""Pictures that a cache holds; the oldest go first."""
MOST_LABELS = 30
"""Above this many labels they are coloured along a scale."""

_numbers = itertools.count(1)
Say = Callable[[str], None]


def cache_path(path: os.PathLike[str] | str) -> Path:
    """Where the UMAP coordinates of a page are kept."""
    return Path(path).with_suffix(".embedding.json")


def embedding_section(
    comparison: Comparison,
    path: os.PathLike[str] | str,
    models: Mapping[str, Any] | None,
    request: EmbeddingRequest,
    progress: Say | None,
) -> list[Markup]:
    """The figure with its menus; where features cannot be read, one line that says why."""
    entries: list[dict[str, Any]] = []
    problems: list[str] = []
    with _Cache(cache_path(path)) as cache:
        for place in request.places:
            try:
                x, y, labels, ids = _features(comparison, place, models, request)
                made = _embed(place, x, y, labels, request, cache, progress, problems)
            except FeatlensError as error:
                problems.append(f"{place.said}: not shown, {error}")
                continue
            entries.append(_entry(place, made, labels, ids))
    if request.left_out:
        problems.append(
            f"{request.left_out} more pairs of models are not embedded; compare them on their own"
        )
    parts = [note(text, "warning") for text in dict.fromkeys(problems)]
    return [*parts, *_figure(entries, request.methods)] if entries else parts


def _features(
    comparison: Comparison, place: Place, models: Mapping[str, Any] | None, request: EmbeddingRequest
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64] | None, list[int]]:
    """Rows of both sides, labels and sample ids."""
    told: Mapping[str, Any] = comparison.provenance["models"]
    sources = dict(models or {})
    for name in (place.a, place.b):
        if name not in sources:
            file = told[name].get("file")
            if not file:
                raise UsageError(
                    f"{name} was compared from arrays; pass models={{{name!r}: ...}} to report()"
                )
            if not Path(file).exists():
                raise StoreError(f"{file} is no longer there")
            sources[name] = file
    with contextlib.ExitStack() as stack:
        opened: dict[str, Side] = {}
        for index, name in enumerate((place.a, place.b)):
            sigmas = sorted({level[index] for level in comparison.levels})
            opened |= open_sides(stack, {name: sources[name]}, sigmas)
        sides = [opened[name] for name in (place.a, place.b)]
        for side in sides:
            _require_unchanged(side, told[side.name])
        if len(sides[0]) != len(sides[1]):
            raise UsageError(f"{place.a} has {len(sides[0])} samples, {place.b} {len(sides[1])}")
        rows = choose_rows(len(sides[0]), request.rows, request.seed)
        for side in sides:
            side.subset = rows
        x = sides[0].read(place.site_a, place.sigma_a)
        y = sides[1].read(place.site_b, place.sigma_b)
        store = sides[0].store or sides[1].store
        ids = rows if store is None else store.ids[rows]
        labels = None if store is None or store.labels is None else store.labels[rows]
    return x, y, labels, ids.tolist()


def _require_unchanged(side: Side, told: Mapping[str, Any]) -> None:
    """Refuse a file that was written anew after it was compared."""
    now = side.provenance()
    for key in ("weights_digest", "sample_digest"):
        if told.get(key) and now.get("file") and now.get(key) != told[key]:
            raise StoreError(f"{now['file']} is not the file that was compared (its {key} is another)")


def _embed(
    place: Place,
    x: NDArray[Any],
    y: NDArray[Any],
    labels: NDArray[np.int64] | None,
    request: EmbeddingRequest,
    cache: _Cache,
    progress: Say | None,
    problems: list[str],
) -> dict[str, Embedding]:
    """PCA, and UMAP where it was asked for and is possible."""
    options: dict[str, Any] = {"rows": len(x), "seed": request.seed}
    made = {"pca": embed_pair(x, y, labels, "pca", **options)}
    if "umap" not in request.methods:
        return made
    if len(x) < LEAST_UMAP:
        problems.append(
            f"{place.said}: PCA only, UMAP needs {LEAST_UMAP} samples or more, there are {len(x)}"
        )
        return made
    key = _key(x, y, request.seed)
    known = cache.get(key, made["pca"])
    if known is None:
        if progress is not None:
            slow = (
                "" if "umap" in sys.modules else " (its first use in a process compiles for up to a minute)"
            )
            progress(f"UMAP of {place.said}{slow}")
        try:
            known = embed_pair(x, y, labels, "umap", **options)
        except FeatlensError as error:
            problems.append(f"{place.said}: PCA only, {error}")
            return made
        cache.put(key, known)
    return {"umap": known, **made}


def _key(x: NDArray[Any], y: NDArray[Any], seed: int) -> str:
    """Digest of everything that UMAP coordinates depend on."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        umap = version("umap-learn")
    except PackageNotFoundError:
        umap = "none"
    sha = hashlib.sha256(json.dumps([FORMAT, __version__, umap, seed]).encode())
    for side in (x, y):
        sha.update(f"{side.dtype.str}{side.shape}".encode())
        sha.update(np.ascontiguousarray(side).data)
    return sha.hexdigest()[:32]


class _Cache:
    """Coordinates by digest in a JSON file; a damaged file is as good as none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, list[Any]] = {}
        self.changed = False

    def __enter__(self) -> _Cache:
        with contextlib.suppress(OSError, ValueError, RecursionError):
            told = json.loads(self.path.read_text(encoding="utf-8"))
            if isinstance(told, dict) and told.get("format") == FORMAT and isinstance(told["umap"], dict):
                self.entries = told["umap"]
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is None and self.changed:
            kept = dict(list(self.entries.items())[-MOST_KEPT:])
            write_text(self.path, json.dumps({"format": FORMAT, "umap": kept}))

    def get(self, key: str, like: Embedding) -> Embedding | None:
        """What was computed before from the same features; all but the coordinates is that of PCA."""
        try:
            points = np.asarray(self.entries[key], dtype=np.float64)
        except (KeyError, ValueError, TypeError):
            return None
        if points.shape != like.coordinates.shape or not np.isfinite(points).all():
            return None
        return Embedding(**{**vars(like), "coordinates": points, "method": "umap", "shown": float("nan")})

    def put(self, key: str, made: Embedding) -> None:
        """Keep coordinates."""
        # UMAP works in float32.
        self.entries[key] = _short(made.coordinates, 8)
        self.changed = True


def _short(array: NDArray[np.float64], digits: int) -> Any:
    """Nested lists of numbers with that many significant digits."""
    if array.ndim == 1:
        return [float(f"{value:.{digits}g}") for value in array.tolist()]
    return [_short(part, digits) for part in array]


def _entry(
    place: Place, made: Mapping[str, Embedding], labels: NDArray[np.int64] | None, ids: list[int]
) -> dict[str, Any]:
    """What the browser draws of one place: points as (side, axis, sample)."""
    return {
        "said": f"Sigma {place.sigma_a:g}." if place.sigma_a == place.sigma_b
        else f"Sigma {place.sigma_a:g} and {place.sigma_b:g}.",
        "menu": place.said,
        "a": place.a,
        "b": place.b,
        "site_a": place.site_a,
        "site_b": place.site_b,
        "ids": ids,
        "labels": None if labels is None else labels.tolist(),
        "points": {
            method: _short(found.coordinates.transpose(0, 2, 1), 5) for method, found in made.items()
        },
        "facts": {method: _facts(place, found) for method, found in made.items()},
    }  # fmt: skip


def _facts(place: Place, made: Embedding) -> str:
    percent = [f"{100 * share:.0f} %" for share in made.explained]
    apart, chance = 100 * made.residual, 100 * made.residual_null
    said = (
        f"{len(made.rows)} samples. Kept: {made.components[0]} principal components of {place.a} "
        f"({percent[0]} of its variance), {made.components[1]} of {place.b} ({percent[1]}). After turning "
        f"{place.b} onto {place.a}, {apart:.0f} % of their variance disagrees (with permuted samples: "
        f"{chance:.0f} %)."
    )
    if made.residual > 0.9 * made.residual_null:
        said += " That is hardly better than chance: do not read distances between the models."
    if made.method == "pca":
        return f"{said} The two axes show {100 * made.shown:.0f} % of what was kept."
    return f"{said} UMAP keeps neighbours: sizes of clusters and the gaps between them mean nothing."


def _figure(entries: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> Iterator[Markup]:
    name = f"embedding{next(_numbers)}"
    options = Markup("").join(
        Markup('<option value="{}">{}</option>').format(k, entry["menu"]) for k, entry in enumerate(entries)
    )
    kinds = Markup("").join(
        Markup('<option value="{}">{}</option>').format(method, method.upper()) for method in methods
    )
    yield Markup(
        '<div class="embedding" id="{0}"><div class="menus">'
        '<label>shown <select data-role="entry">{1}</select></label>'
        '<label>method <select data-role="method">{2}</select></label>'
        '<label><input type="checkbox" data-role="joined"> join the two points of a sample</label></div>'
        '<figure><div class="plot" id="{0}-plot" role="img" aria-label="features of both models in one '
        'plane; the same numbers are in the table below"></div><figcaption><span data-part="key"></span> '
        '<span data-part="facts"></span></figcaption></figure>'
        '<details data-part="numbers"><summary>The points, as a table</summary><div></div></details></div>'
    ).format(name, options, kinds)
    spec = {"entries": entries, "most": MOST_LABELS}
    yield Markup("<script>featlensEmbedding('{}', {});</script>").format(name, _script_json(spec))
