"""The documentation names every command, option and public name, and its generated page is up to date."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from featlens.cli import command_names
from featlens.cli.dispatch import SUMMARIES

ROOT = Path(__file__).parent.parent


def test_the_page_of_the_command_line_is_up_to_date() -> None:
    script = ROOT / "docs" / "generate_cli.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_command_has_a_summary_and_a_section() -> None:
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    ours = [name for name in command_names() if name in SUMMARIES]
    assert set(ours) == set(SUMMARIES)
    assert all(re.search(rf"^#+ .*{name}", page, flags=re.MULTILINE) for name in ours)


@pytest.mark.parametrize("package", ["featlens", "featlens_probes", "featlens_trainers"])
def test_every_public_name_is_in_the_reference(package: str) -> None:
    page = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    public = importlib.import_module(package).__all__
    assert [name for name in public if not name.startswith("__") and f"{package}.{name}" not in page] == []


def test_every_page_that_the_readme_links_to_is_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert links and [link for link in links if not (ROOT / link).exists()] == []
