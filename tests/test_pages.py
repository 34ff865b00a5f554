"""The Python blocks of these pages run as they stand, and print what the comments below them say."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = {
    "how-to/capture.md": 6,
    "how-to/distill.md": 4,
    "how-to/initialise.md": 4,
    "how-to/inspect-data.md": 1,
    "how-to/several-devices.md": 1,
    "how-to/train.md": 6,
    "notes/ema.md": 2,
    "notes/networks.md": 2,
    "notes/projection.md": 1,
    "notes/cka.md": 4,
    "notes/rsa.md": 2,
    "notes/neighbours.md": 1,
    "notes/dependence.md": 2,
    "notes/geometry.md": 3,
    "notes/quality.md": 3,
    "notes/cca.md": 2,
    "notes/procrustes.md": 2,
    "notes/spectral.md": 3,
    "notes/predictivity.md": 3,
}


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run_and_print_what_the_page_says(page: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, object] = {}
    checked = 0
    for block in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, page, "exec"), names)
        told = [line[2:] for line in block.splitlines() if line.startswith("# ")]
        assert printed.getvalue().splitlines() == told
        checked += bool(told)
    assert checked == PAGES[page]
