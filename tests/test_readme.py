"""The README's snippets run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

README = Path(__file__).parent.parent / "README.md"


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_there_are_two_snippets_of_at_most_ten_lines() -> None:
    found = snippets()
    assert len(found) == 2
    assert all(len([line for line in text.splitlines() if line.strip()]) <= 10 for text in found)


def test_notebook_snippet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from featlens_trainers.initialisation import build_denoiser
    from featlens_trainers.networks import UNetConfig
    from featlens_trainers.runs import Run
    from featlens_trainers.snapshots import save_denoiser

    for seed, name in enumerate(("teacher", "student-teacher-random-reverse_kl-s0")):
        with Run(tmp_path / "runs" / "digits" / name, "teacher", {}) as run:
            save_denoiser(
                run.snapshot_path(64), build_denoiser(UNetConfig(channels=8), 0.75, seed), sigma_init=2.5
            )
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(snippets()[0], "README.md", "exec"), names)
    assert (tmp_path / "comparison.html").stat().st_size > 1_000_000
    assert names["comparison"].n == 599  # type: ignore[attr-defined]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"conv0": nn.Conv2d(1, 4, 3), "conv1": nn.Conv2d(4, 6, 3)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in self.body.values():
            x = torch.relu(module(x))
        return x


def test_embedding_snippet(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    names: dict[str, object] = {"before": Model(), "after": Model(), "batch": torch.randn(64, 1, 8, 8)}
    exec(compile(snippets()[1], "README.md", "exec"), names)
    assert "body.conv1" in capsys.readouterr().out
