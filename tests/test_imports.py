"""Import hygiene: featlens costs nothing to import, and comparing files needs no torch."""

from __future__ import annotations

import json

import pytest

import featlens

REPORT = "\nimport json, sys\nprint(json.dumps(sorted(name for name in sys.modules if '.' not in name)))"


def modules(result):
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_importing_featlens_imports_no_package_at_all(python):
    loaded = modules(python("import featlens; featlens.__version__; dir(featlens)" + REPORT))
    assert "featlens" in loaded
    assert not loaded & {"numpy", "torch", "xarray", "h5py", "pandas", "scipy", "sklearn", "plotly"}


COMPARE = """
import sys
import featlens
result = featlens.compare({"a": sys.argv[1], "b": sys.argv[2]}, permutations=3)
result.to_frame()
result.data
result.save(sys.argv[3])
featlens.Comparison.load(sys.argv[3])
featlens.measures.cka
"""


def test_comparing_two_feature_files_does_not_import_torch(python, tmp_path, make_store):
    for name in "ab":
        make_store(tmp_path / f"{name}.h5")
    arguments = [tmp_path / name for name in ("a.h5", "b.h5", "c.nc")]
    loaded = modules(python(COMPARE + REPORT, *arguments))
    assert {"numpy", "h5py", "xarray"} <= loaded
    assert "torch" not in loaded
    # Nor is it missed where it is not installed.
    modules(python("import sys; sys.modules['torch'] = None" + COMPARE + REPORT, *arguments))


def test_every_public_name_is_there_and_unknown_ones_are_an_attribute_error():
    for name in featlens.__all__:
        assert getattr(featlens, name) is not None
    assert set(featlens.__all__) == set(dir(featlens))
    with pytest.raises(AttributeError, match="module 'featlens' has no attribute 'captur'"):
        _ = featlens.captur


def test_public_classes_and_functions_are_documented():
    for name in featlens.__all__:
        if name != "__version__":
            assert (getattr(featlens, name).__doc__ or "").strip(), name
