"""What all results of the probes share: the same values in every form, and files that say what they are."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import xarray as xr

from featlens.errors import FeatlensError, UsageError
from featlens_probes.labelled import Labelled, finite


@dataclass(frozen=True, repr=False)
class Heights(Labelled):
    FORMAT: ClassVar[str] = "featlens.heights"
    TITLE: ClassVar[str] = "Heights"

    def figure(self) -> Any:
        import plotly.graph_objects as go

        return go.Figure(go.Bar(x=self.data["site"].values.tolist(), y=self.data["height"].values))

    def facts(self) -> list[str]:
        return ["<b>three</b> sites"]

    def __repr__(self) -> str:
        return "Heights(<i>3</i> sites)"


@pytest.fixture
def heights() -> Heights:
    data = xr.Dataset(
        {"height": ("site", np.array([1.0, np.nan, 3.0]))},
        coords={"site": ["a", "<script>alert(1)</script>", "c"]},
        attrs={"format": "featlens.heights", "version": 1, "provenance": json.dumps({"seed": 0})},
    )
    return Heights(data)


def test_every_form_holds_the_same_values(heights: Heights, tmp_path: Path) -> None:
    for ending in ("json", "csv", "nc"):
        heights.save(tmp_path / f"h.{ending}")
    told = json.loads((tmp_path / "h.json").read_text())
    assert told["format"] == "featlens.heights"
    assert told["variables"]["height"] == {"dims": ["site"], "values": [1.0, None, 3.0]}
    assert told["coords"]["site"] == heights.data["site"].values.tolist()
    assert Heights.load(tmp_path / "h.nc").data.identical(heights.data)
    assert (tmp_path / "h.csv").read_text().splitlines()[1] == "a,1.0"
    assert heights.to_frame()["height"].tolist()[2] == 3.0


def test_the_page_escapes_what_comes_from_files(heights: Heights, tmp_path: Path) -> None:
    heights.save(tmp_path / "h.html")
    text = (tmp_path / "h.html").read_text()
    assert "<script>alert(1)" not in text
    assert "<i>3</i>" not in text
    assert "&lt;b&gt;three&lt;/b&gt;" in text


def test_frozen_and_copied(heights: Heights) -> None:
    heights.to_xarray()["height"][0] = 7
    assert heights.data["height"][0] == 1
    with pytest.raises(FrozenInstanceError):
        heights.data = heights.data  # type: ignore[misc]


def test_wrong_endings_and_files(heights: Heights, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected a name that ends in \.html"):
        heights.save(tmp_path / "h.txt")
    with pytest.raises(UsageError, match="no such file"):
        Heights.load(tmp_path / "none.nc")
    (tmp_path / "bad.nc").write_text("no netCDF")
    with pytest.raises(FeatlensError, match=r"expected a \.nc file of featlens\.heights"):
        Heights.load(tmp_path / "bad.nc")
    xr.Dataset(attrs={"format": "featlens.other"}).to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    with pytest.raises(UsageError, match=r"got 'featlens\.other'"):
        Heights.load(tmp_path / "other.nc")


def test_finite() -> None:
    assert finite({1: (np.float32(1), np.int64(2), np.nan, "x", None, True)}) == {
        "1": [1.0, 2, None, "x", None, True]
    }
