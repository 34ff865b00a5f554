"""What all results of this package share: one frozen, labelled data set, and every form a reader may want."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from featlens.errors import FeatlensError, UsageError
from featlens.files import write_netcdf, write_text

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from markupsafe import Markup

    from featlens.report import Page

__all__ = ["ENDINGS", "Labelled", "finite", "require_ending"]

ENDINGS = (".html", ".json", ".nc", ".csv")

Result = TypeVar("Result", bound="Labelled")


def finite(value: Any) -> Any:
    """Plain numbers, lists and dicts; what is not finite, which JSON does not know, becomes None.

    >>> finite({"a": np.array([1.0, np.nan])})
    {'a': [1.0, None]}
    """
    if isinstance(value, dict):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return finite(value.tolist())
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    if isinstance(value, np.generic):
        return finite(value.item())
    return None if isinstance(value, float) and not np.isfinite(value) else value


def require_ending(path: os.PathLike[str] | str) -> Path:
    """The path, if its ending says how to write it."""
    if Path(path).suffix not in ENDINGS:
        raise UsageError(f"{path}: expected a name that ends in .html, .json, .nc or .csv")
    return Path(path)


@dataclass(frozen=True, repr=False)
class Labelled:
    """A result: a data set whose axes have names, with what it takes to read, draw and keep it.

    Each kind of result says in ``FORMAT`` what its files are called inside, and in ``TITLE`` how its section
    of a report is headed; it draws itself in ``figure`` and puts itself into words in ``facts``.
    """

    data: xr.Dataset

    FORMAT: ClassVar[str] = ""
    TITLE: ClassVar[str] = ""

    def figure(self) -> Any:
        """Plotly figure of the main result."""
        raise NotImplementedError

    def facts(self) -> list[str]:
        """What a reader has to know beside the figure, a sentence each, as plain text."""
        raise NotImplementedError

    def to_xarray(self) -> xr.Dataset:
        """Copy of the data set."""
        copy: xr.Dataset = self.data.copy(deep=True)
        return copy

    def to_frame(self) -> pd.DataFrame:
        """One row a cell."""
        frame: pd.DataFrame = self.data.to_dataframe().reset_index()
        return frame

    def to_json(self) -> str:
        """Object with ``format``, ``attrs``, ``coords`` and ``variables`` (dims, values) of the data set."""
        data = self.data
        return json.dumps(
            {
                "format": self.FORMAT,
                "attrs": finite(dict(data.attrs)),
                "coords": {str(name): finite(data[name].values) for name in data.coords},
                "variables": {
                    str(name): {
                        "dims": [str(d) for d in data[name].dims],
                        "values": finite(data[name].values),
                    }
                    for name in data.data_vars
                },
            }
        )

    def parts(self) -> list[Markup]:
        """What stands in this result's section of a report: facts, then figure."""
        from featlens.report import figure, note

        return [*(note(fact) for fact in self.facts()), figure(self.figure(), self.TITLE)]

    def section(self, page: Page) -> None:
        """Append this result to a report's page."""
        page.section(self.TITLE, *self.parts())

    def report(self, path: os.PathLike[str] | str) -> Path:
        """Write a page of this result alone, which opens offline; returns its path."""
        from featlens.report import Page

        page = Page(self.TITLE, repr(self))
        self.section(page)
        return page.write(path)

    def save(self, path: os.PathLike[str] | str) -> None:
        """Write a page (``.html``), JSON (``.json``), netCDF (``.nc``) or CSV (``.csv``), atomically."""
        target = require_ending(path)
        if target.suffix == ".html":
            self.report(target)
        elif target.suffix == ".json":
            write_text(target, self.to_json() + "\n")
        elif target.suffix == ".csv":
            write_text(target, self.to_frame().to_csv(index=False))
        else:
            write_netcdf(target, self.data)

    @classmethod
    def load(cls: type[Result], path: os.PathLike[str] | str) -> Result:
        """Read what ``save`` wrote as netCDF."""
        import xarray as xr

        if not Path(path).is_file():
            raise UsageError(f"{path}: no such file; expected a .nc file of {cls.FORMAT}")
        try:
            with xr.open_dataset(path, engine="h5netcdf") as opened:
                data = opened.load()
        except (OSError, ValueError, KeyError) as error:
            raise FeatlensError(f"{path}: expected a .nc file of {cls.FORMAT}, got {error}") from error
        if data.attrs.get("format") != cls.FORMAT:
            raise UsageError(
                f"{path}: expected a file of {cls.FORMAT}, got {data.attrs.get('format', 'another file')!r}"
            )
        return cls(data)

    def _repr_html_(self) -> str:
        out: str = self.figure().to_html(full_html=False, include_plotlyjs="cdn")
        return out
