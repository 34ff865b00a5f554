"""Weights of noise levels by their written formulas, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from featlens.denoiser import Preconditioning
from featlens.errors import FeatlensError, UsageError
from featlens_trainers import DistillConfig
from featlens_trainers.weighting import WEIGHTINGS, image_distance, resolve_weighting

SIGMA = torch.tensor([0.01, 0.3, 1.0, 20.0], dtype=torch.float64)
DISTANCE = torch.tensor([0.2, 0.4, 0.1, 2.0], dtype=torch.float64)


# w(sigma) by hand, s = 0.5, d the distance.
BY_HAND = {
    "sigma_squared": ("sigma^2", lambda sigma, d: sigma**2),
    "sigma": ("sigma", lambda sigma, d: sigma),
    "one": ("1", lambda sigma, d: 1.0),
    "snr": ("s^2 / sigma^2", lambda sigma, d: 0.25 / sigma**2),
    "signal": ("sigma^2 s^2 / (sigma^2 + s^2)", lambda sigma, d: 0.25 * sigma**2 / (sigma**2 + 0.25)),
    "edm": ("(sigma^2 + s^2) / s^2", lambda sigma, d: (sigma**2 + 0.25) / 0.25),
    "normalised": ("sigma^2 / mean|x0 - D|", lambda sigma, d: sigma**2 / d),
}


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_image_weights_are_the_formula_over_sigma_squared(name: str) -> None:
    entry, (formula, by_hand) = WEIGHTINGS[name], BY_HAND[name]
    assert (entry.name, entry.formula) == (name, formula)
    found = entry.image_weight(SIGMA, 0.5, DISTANCE).tolist()
    expected = [by_hand(s, d) / s**2 for s, d in zip(SIGMA.tolist(), DISTANCE.tolist(), strict=True)]
    assert found == pytest.approx(expected, rel=1e-9)


def test_sigma_squared_is_exactly_one_in_image_space() -> None:
    assert WEIGHTINGS["sigma_squared"].image_weight(SIGMA, 0.5, None).tolist() == [1.0] * 4


def test_edm_is_the_weight_of_edms_loss_in_image_space() -> None:
    found = WEIGHTINGS["edm"].image_weight(SIGMA, 0.5, None)
    torch.testing.assert_close(found, Preconditioning(0.5).loss_weight(SIGMA))
    signal = WEIGHTINGS["signal"].image_weight(SIGMA, 0.5, None)
    torch.testing.assert_close(signal, Preconditioning(0.5).c_skip(SIGMA))


def test_distance_is_the_mean_over_pixels_and_never_zero() -> None:
    x0 = torch.tensor([[[[1.0, -1.0]]], [[[0.5, 0.5]]]])
    assert image_distance(x0, torch.zeros(2, 1, 1, 2)).tolist() == [1.0, 0.5]
    assert image_distance(x0, x0).tolist() == pytest.approx([1e-5, 1e-5])


def test_a_weighting_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "weights.py"
    file.write_text("def cubed(sigma):\n    return sigma ** 3\ndef one(sigma):\n    return 1.0\n")
    own = resolve_weighting(f"python:{file}:cubed")
    torch.testing.assert_close(own.image_weight(SIGMA, 0.5, None), SIGMA)
    with pytest.raises(UsageError, match=r"expected a tensor \(4,\), one weight for each sigma, got a float"):
        resolve_weighting(f"python:{file}:one").image_weight(SIGMA, 0.5, None)
    with pytest.raises(UsageError, match="no file"):
        resolve_weighting("python:./nothing.py:one")
    with pytest.raises(UsageError, match="expected python:module:function"):
        resolve_weighting("python:weights")


def test_unknown_and_impossible_weightings() -> None:
    with pytest.raises(UsageError, match="unknown weighting 'sigma_square': did you mean 'sigma_squared'"):
        resolve_weighting("sigma_square")
    with pytest.raises(UsageError, match="unknown weighting 'normalized': did you mean 'normalised'"):
        DistillConfig(weighting="normalized")
    with pytest.raises(UsageError, match="the direction 'ratio' has no teacher; choose another"):
        DistillConfig(weighting="normalised")
    with pytest.raises(FeatlensError, match="this direction has no teacher"):
        WEIGHTINGS["normalised"].image_weight(SIGMA, 0.5, None)
