"""A small denoiser for ``python:tests.reliability.model:build``."""

from __future__ import annotations

import itertools
import time

import torch
from torch import Tensor, nn

from featlens.denoiser import EDMDenoiser

__all__ = ["build"]

CHANNELS = 32
PAUSE = 0.03
"""Seconds that a pass takes longer, so that kills meet the extraction and not the end of the process."""


class Net(nn.Module):
    """Four convolutions; nothing in it is random but the weights, which are always the same."""

    def __init__(self) -> None:
        super().__init__()
        widths = [1, CHANNELS, CHANNELS, CHANNELS, 1]
        pairs = itertools.pairwise(widths)
        self.enc = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairs)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        """(B, 1, 8, 8) -> (B, 1, 8, 8)."""
        time.sleep(PAUSE)
        for layer in self.enc[:-1]:
            x = torch.tanh(layer(x) + c_noise[:, None, None, None])
        out: Tensor = self.enc[-1](x)
        return out


def build() -> EDMDenoiser:
    """The same denoiser in every process."""
    torch.manual_seed(0)
    return EDMDenoiser(Net(), (1, 8, 8), 0)
