"""Diagnostics against closed forms on Gaussians, and alarms that ring when they should and only then."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from featlens.errors import UsageError
from featlens_trainers.alarms import IN_A_ROW, Alarms
from featlens_trainers.data import TensorData
from featlens_trainers.diagnostics import (
    CHUNK,
    Diagnosis,
    SigmaBin,
    auc,
    bin_shares,
    calibration_error,
    diagnose,
    ideal_denoiser,
)
from featlens_trainers.settings import NoiseConfig
from featlens_trainers.settings.diagnostics import DiagnosticsConfig
from featlens_trainers.training import TrainingError

MEAN = 1.5
"""Real images are N(0, 1) in each pixel, generated ones N(MEAN, 1)."""


class ExactRatio(nn.Module):
    """log N(x; 0, 1 + sigma^2) - log N(x; MEAN, 1 + sigma^2), summed over pixels."""

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        variance = 1 + sigma**2
        return ((x.flatten(1) - MEAN).square() - x.flatten(1).square()).sum(1) / (2 * variance)


class ExactDenoiser(nn.Module):
    """E[x0 | x] for x0 ~ N(0, 1)."""

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return x / (1 + sigma[:, None, None, None] ** 2)


def data(count: int = 4000) -> TensorData:
    return TensorData(torch.randn(count, 1, 1, 2, generator=torch.Generator().manual_seed(0)))


def student(z: Tensor, labels: Tensor | None = None) -> Tensor:
    return z + MEAN


def normal_cdf(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


# --- statistics ---------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=12),
    st.lists(st.integers(-3, 3), min_size=1, max_size=12),
)
def test_auc_counts_pairs(real: list[int], fake: list[int]) -> None:
    pairs = [1.0 if r > f else 0.5 if r == f else 0.0 for r in real for f in fake]
    assert auc(torch.tensor(real).float(), torch.tensor(fake).float()) == pytest.approx(np.mean(pairs))


def test_calibration_is_small_for_the_truth_and_large_for_the_overconfident() -> None:
    numbers = torch.Generator().manual_seed(0)
    logit = torch.randn(20_000, generator=numbers) * 2
    is_real = torch.rand(20_000, generator=numbers) < logit.sigmoid()
    right = calibration_error(logit[is_real], logit[~is_real])
    assert right < 0.02
    assert calibration_error(5 * logit[is_real], 5 * logit[~is_real]) > 5 * right
    assert calibration_error(torch.full((9,), 50.0), torch.full((9,), 50.0)) == pytest.approx(0.5)


def test_ideal_denoiser_is_the_posterior_mean_of_the_bank() -> None:
    bank = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]]).reshape(3, 1, 1, 2)
    x = torch.tensor([[0.5, 0.1]]).reshape(1, 1, 1, 2)
    density = [math.exp(-((x - y).square().sum().item()) / (2 * 0.49)) for y in bank]
    weight = np.array(density) / sum(density)
    mean, neighbours = ideal_denoiser(x, 0.7, bank)
    np.testing.assert_allclose(mean.flatten(), weight @ bank.flatten(1).numpy(), rtol=1e-5)
    assert neighbours.item() == pytest.approx(1 / (weight**2).sum(), rel=1e-5)


# --- a diagnosis --------------------------------------------------------------------------------------------


def test_the_exact_ratio_of_gaussians_is_seen_as_exact() -> None:
    config = DiagnosticsConfig(sigmas=(0.5, 2.0), images=2000, bank=4000)
    found = diagnose(student, ExactRatio(), data(), config, seed=0, images=64, teacher=ExactDenoiser())
    for entry in found.bins:
        spread = math.sqrt(1 + entry.sigma**2)
        apart = MEAN * math.sqrt(2) / spread
        assert entry.auc == pytest.approx(normal_cdf(apart / math.sqrt(2)), abs=0.02)
        assert entry.calibration < 0.05
        # sigma^2 grad h = -MEAN sigma^2 / (1 + sigma^2) in both pixels, everywhere.
        wanted = math.sqrt(2) * MEAN * entry.sigma**2 / (1 + entry.sigma**2)
        assert entry.gradient == pytest.approx(wanted, rel=1e-4)
        assert entry.pull == pytest.approx(entry.gradient)
        assert entry.teacher_cosine > 0.9
    # At the larger noise level many images carry the ideal denoiser, and it is close to the exact one.
    assert found.bins[1].neighbours > 100
    assert found.bins[1].teacher_gap < 0.1
    assert found.diversity == pytest.approx(1, abs=0.05)


def test_a_conditional_teacher_is_compared_within_a_class() -> None:
    """Class c: real images N(4c, 1), generated ones N(4c + MEAN, 1); the difference is that of one class."""

    def centre(labels: Tensor) -> Tensor:
        return 4.0 * labels[:, None, None, None]

    class Ratio(ExactRatio):
        def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
            return super().forward(x - centre(labels), sigma)

    class Teacher(ExactDenoiser):
        num_labels = 2

        def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
            return centre(labels) + super().forward(x - centre(labels), sigma)

    labels = torch.arange(4000) % 2
    real = TensorData(data().images + centre(labels), labels)
    config = DiagnosticsConfig(sigmas=(2.0,), images=500, bank=4000)
    (entry,) = diagnose(
        lambda z, labels: z + MEAN + centre(labels), Ratio(), real, config, 0, 0, teacher=Teacher()
    ).bins
    assert entry.teacher_gap < 0.15
    assert entry.teacher_cosine > 0.95


def test_ideal_denoiser_without_an_image_of_the_class_says_so() -> None:
    allowed = torch.tensor([[True, False], [False, False]])
    mean, neighbours = ideal_denoiser(torch.zeros(2, 1), 1.0, torch.tensor([[1.0], [2.0]]), allowed)
    assert mean.tolist() == [[1.0], [0.0]]
    assert neighbours.tolist() == [1.0, 0.0]


def test_no_network_meets_all_images_at_once() -> None:
    most: list[int] = []

    class Ratio(ExactRatio):
        def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
            most.append(len(x))
            return super().forward(x, sigma)

    class Teacher(ExactDenoiser):
        def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
            most.append(len(x))
            return super().forward(x, sigma)

    def made(z: Tensor, labels: Tensor | None) -> Tensor:
        most.append(len(z))
        return student(z)

    config = DiagnosticsConfig(sigmas=(2.0,), images=CHUNK + 6, bank=3 * CHUNK + 1)
    diagnose(made, Ratio(), data(), config, 0, 0, teacher=Teacher())
    # Generated ones and the bank, both halves of the ratio network, the teacher.
    assert most == [CHUNK, 6, CHUNK, CHUNK, CHUNK, 1, CHUNK, CHUNK, 6, 6, CHUNK, 6]


def test_images_that_are_all_alike_are_no_error() -> None:
    alike = TensorData(torch.zeros(8, 1, 1, 2))
    found = diagnose(student, ExactRatio(), alike, DiagnosticsConfig(sigmas=(1.0,), images=8), 0, 0)
    assert found.diversity > 1


def test_equal_distributions_cannot_be_told_apart() -> None:
    class Nothing(nn.Module):
        def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
            return 0 * x.flatten(1).sum(1)

    found = diagnose(lambda z, labels: z, Nothing(), data(), DiagnosticsConfig(sigmas=(1.0,)), 0, 0)
    assert found.bins[0].auc == 0.5
    assert found.bins[0].bce == pytest.approx(math.log(2))
    assert found.bins[0].gradient == 0
    assert math.isnan(found.bins[0].teacher_gap)


def test_the_teacher_is_not_compared_where_single_images_show() -> None:
    config = DiagnosticsConfig(sigmas=(0.001,), images=64, bank=64)
    (entry,) = diagnose(student, ExactRatio(), data(), config, 0, 0, teacher=ExactDenoiser()).bins
    assert entry.neighbours < 2
    assert math.isnan(entry.teacher_gap) and math.isfinite(entry.gradient)


def test_the_weight_of_the_divergence_scales_the_pull() -> None:
    config = DiagnosticsConfig(sigmas=(1.0,), images=64)
    (entry,) = diagnose(student, ExactRatio(), data(), config, 0, 0, weight=lambda h: 0 * h + 0.25).bins
    assert entry.pull == pytest.approx(entry.gradient / 4)


def test_a_diagnosis_repeats_and_changes_nothing() -> None:
    ratio = nn.Sequential()
    ratio.forward = ExactRatio().forward  # type: ignore[method-assign]
    ratio.train()
    before = torch.get_rng_state()
    config = DiagnosticsConfig(sigmas=(1.0,), images=32)
    first, again = (diagnose(student, ratio, data(), config, 3, 128).metrics() for _ in range(2))
    assert first == again != diagnose(student, ratio, data(), config, 3, 192).metrics()
    assert torch.equal(before, torch.get_rng_state())
    assert ratio.training


def test_labels_reach_generator_and_ratio_network() -> None:
    seen: list[set[int]] = []

    class Labelled(ExactRatio):
        def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
            seen.append(set(labels.tolist()))
            return super().forward(x, sigma)

    labelled = TensorData(data(40).images, torch.arange(40) % 3)
    diagnose(
        lambda z, labels: z + labels[:, None, None, None],
        Labelled(),
        labelled,
        DiagnosticsConfig((1.0,)),
        0,
        0,
    )
    assert all(labels == {0, 1, 2} for labels in seen)


def test_metrics_are_plain_and_without_nan() -> None:
    found = Diagnosis(8, (SigmaBin(0.5, auc=0.7), SigmaBin(1.0)), math.nan).metrics()
    assert found["diversity"] is None
    assert found["bins"]["sigma"] == [0.5, 1.0]
    assert found["bins"]["auc"] == [0.7, None]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alarms": "warm"}, "did you mean 'warn'"),
        ({"sigmas": (0.0,)}, "above 0"),
        ({"images": 1}, "at least 2"),
        ({"bank": 3}, "at least 16"),
    ],
)
def test_bad_settings_are_one_line(changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DiagnosticsConfig(**changes)


# --- alarms -------------------------------------------------------------------------------------------------


def said(images: int, diversity: float = 1.0, auc: float = 0.8, pull: float = 1.0) -> Diagnosis:
    return Diagnosis(
        images, (SigmaBin(0.5, auc=auc, pull=pull), SigmaBin(2.0, auc=auc, pull=pull)), diversity
    )


def test_a_collapse_stops_with_advice_after_some_evaluations() -> None:
    alarms = Alarms({})
    alarms.hear(said(0))
    for _ in range(IN_A_ROW - 1):
        alarms.hear(said(64, diversity=0.01))
    with pytest.raises(TrainingError, match=r"collapsed.*lower distill\.lr") as caught:
        alarms.hear(said(128, diversity=0.01))
    assert "\n" not in str(caught.value)


def test_a_random_start_without_diversity_did_not_collapse() -> None:
    alarms = Alarms({})
    for images in range(0, 640, 64):
        alarms.hear(said(images, diversity=0.02))


def test_one_bad_evaluation_is_forgiven() -> None:
    alarms = Alarms({})
    for images in range(0, 640, 64):
        alarms.hear(said(images, diversity=0.01 if images % 128 else 1.0))


def test_saturation_stops_and_a_sure_network_that_still_pulls_does_not() -> None:
    alarms = Alarms({})
    for images in range(5):
        alarms.hear(said(images, auc=1.0, pull=1.0))
    alarms.hear(said(6, auc=1.0, pull=1e-5))
    with pytest.raises(TrainingError, match="does not saturate"):
        alarms.hear(said(7, auc=1.0, pull=1e-5))


def test_noise_levels_that_the_generator_never_meets_do_not_count() -> None:
    alarms = Alarms({})
    bins = (SigmaBin(0.5, auc=1.0, pull=1e-6), SigmaBin(10.0, auc=0.5, pull=2.0))
    shares = bin_shares([0.5, 10.0], NoiseConfig(mean=-1.2, std=0.3))
    assert shares == [1.0, 0.0]
    alarms.hear(said(0), shares)
    for images in (1, 2, 3):
        alarms.hear(Diagnosis(images, bins, 1.0))
    alarms.hear(Diagnosis(4, bins, 1.0), shares)
    with pytest.raises(TrainingError, match="gives no direction"):
        alarms.hear(Diagnosis(5, bins, 1.0), shares)


def test_what_alarms_remember_survives_a_resume() -> None:
    notes: dict = {}
    Alarms(notes).hear(said(0))
    Alarms(notes).hear(said(1, diversity=0.01))
    with pytest.raises(TrainingError):
        Alarms(notes).hear(said(2, diversity=0.01))


def test_alarms_can_warn_or_be_off(caplog: pytest.LogCaptureFixture) -> None:
    for mode in ("warn", "off"):
        alarms = Alarms({}, mode)
        with caplog.at_level(logging.WARNING):
            alarms.hear(said(0))
            for images in (1, 2):
                alarms.hear(said(images, diversity=0.0))
    assert len(caplog.records) == 1
