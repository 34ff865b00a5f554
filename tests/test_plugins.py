"""Entry points read from metadata files agree with the standard library's slower way."""

from __future__ import annotations

import importlib.metadata
import sys

import pytest

from featlens.plugins import EntryPoint, entry_points, load_entry_point


def install(folder, distribution, text, kind="dist-info"):
    info = folder / f"{distribution}-1.0.{kind}"
    info.mkdir(parents=True)
    (info / ("METADATA" if kind == "dist-info" else "PKG-INFO")).write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
    )
    (info / "entry_points.txt").write_text(text)


def standard(group):
    """What importlib.metadata finds, a name that is taken twice going to the first."""
    found = {}
    for point in importlib.metadata.entry_points(group=group):
        found.setdefault(point.name, point.value)
    return found


def ours(group):
    return {point.name: point.value for point in entry_points(group)}


@pytest.mark.parametrize(
    "group", ["console_scripts", "pytest11", "featlens.commands", "featlens.adapters", "nothing"]
)
def test_the_installed_entry_points_are_those_of_importlib_metadata(group):
    expected = {name: value.split("[")[0].strip() for name, value in standard(group).items()}
    if group == "console_scripts":
        # Which of two programs of one name wins is a matter of order, which only our own groups fix.
        assert set(ours(group)) == set(expected)
        assert len(expected) > 3
    else:
        assert ours(group) == expected


def test_made_up_distributions_are_found_as_importlib_metadata_finds_them(tmp_path, monkeypatch):
    text = """
# a comment = not:this
[console_scripts]
tool = other:main

[made.group]
plain = package.module
deep = package.module:thing.attribute
extra = package.module:function [gpu,cpu]
spaced   =   package:function

[made.group.longer]
wrong = other
"""
    install(tmp_path, "made_up", text)
    install(tmp_path, "old_style", "[made.group]\negg = package:egg\n", kind="egg-info")
    monkeypatch.syspath_prepend(tmp_path)
    expected = {
        "plain": "package.module",
        "deep": "package.module:thing.attribute",
        "extra": "package.module:function",
        "spaced": "package:function",
        "egg": "package:egg",
    }
    assert ours("made.group") == expected
    assert {name: value.split("[")[0].strip() for name, value in standard("made.group").items()} == expected
    assert {point.distribution for point in entry_points("made.group")} == {"made_up", "old_style"}


def test_names_of_featlens_cannot_be_taken_by_others(tmp_path, monkeypatch):
    install(tmp_path / "first", "Aaa", "[made.group]\nrun = aaa:run\nown = aaa:own\n")
    install(tmp_path / "second", "featlens", "[made.group]\nrun = featlens:run\n")
    monkeypatch.syspath_prepend(tmp_path / "second")
    monkeypatch.syspath_prepend(tmp_path / "first")
    assert entry_points("made.group") == [
        EntryPoint("run", "featlens:run", "featlens"),
        EntryPoint("own", "aaa:own", "aaa"),
    ]


def test_of_two_versions_of_a_distribution_the_first_on_the_path_counts(tmp_path, monkeypatch):
    install(tmp_path / "new", "pack", "[made.group]\nrun = new:run\n")
    install(tmp_path / "old", "pack", "[made.group]\nrun = old:run\ngone = old:gone\n")
    monkeypatch.syspath_prepend(tmp_path / "old")
    monkeypatch.syspath_prepend(tmp_path / "new")
    assert ours("made.group") == standard("made.group") == {"run": "new:run"}


def test_unreadable_metadata_and_missing_folders_are_passed_over(tmp_path, monkeypatch):
    install(tmp_path, "fine", "[made.group]\nrun = fine:run\n")
    (tmp_path / "broken-1.0.dist-info").mkdir()
    (tmp_path / "broken-1.0.dist-info" / "entry_points.txt").write_bytes(b"[made.group]\n\xff\xfe = x\n")
    (tmp_path / "none-1.0.dist-info").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "absent"), str(tmp_path), str(tmp_path)])
    assert ours("made.group") == {"run": "fine:run"}


def test_loading_gives_the_module_or_what_it_names():
    import os.path

    assert load_entry_point(EntryPoint("a", "os.path", "x")) is os.path
    assert load_entry_point(EntryPoint("a", "os:path.join", "x")) is os.path.join
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        load_entry_point(EntryPoint("a", "no_such_module:x", "x"))
    with pytest.raises(AttributeError, match="no_such_name"):
        load_entry_point(EntryPoint("a", "os:no_such_name", "x"))


def test_adapters_of_featlens_are_installed_and_their_options_can_be_read():
    from featlens.options import known_options

    adapters = {point.name: point for point in entry_points("featlens.adapters")}
    assert {"diffusers", "python", "run"} <= set(adapters)
    options = {"width": 1, "dtype": "float16", "device": "cpu", "location": "x"}
    known = {name: known_options(load_entry_point(adapters[name]), options, skip=2) for name in adapters}
    assert known["diffusers"] == {"dtype": "float16"}
    assert known["run"] == {}
    assert known["python"] == options


def test_an_installed_adapter_is_found_with_its_options(tmp_path, monkeypatch):
    import featlens

    install(tmp_path, "made_host", "[featlens.adapters]\nmade = made_host_adapter:load_made\n")
    (tmp_path / "made_host_adapter.py").write_text(
        """
from torch import nn
from featlens import EDMDenoiser

def load_made(location, device, *, ema=True):
    model = EDMDenoiser(nn.Identity(), (1,))
    model.told = (location, device, ema)
    return model if location.endswith("made") else None
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert featlens.load("made:a/made:ema=false").told == ("a/made", "cpu", False)
    assert featlens.load("some/made", device="meta").told == ("some/made", "meta", True)
    with pytest.raises(featlens.FeatlensError, match="adapter 'made' has no option 'emma'"):
        featlens.load("some/made:emma=false")
    sys.modules.pop("made_host_adapter", None)
