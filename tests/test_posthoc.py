"""Averages put together after training, against averages kept during the same training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featlens.errors import FeatlensError, UsageError
from featlens_trainers import (
    TeacherConfig,
    Training,
    UNetConfig,
    build_denoiser,
    start_teacher,
    train_teacher,
)
from featlens_trainers.ema import Power, exponent_of, tracked
from featlens_trainers.posthoc import (
    PowerSnapshot,
    find_snapshots,
    posthoc_denoiser,
    profile_product,
    reconstruct,
    reconstruction_weights,
    save_averages,
    write_posthoc,
)
from featlens_trainers.snapshots import load_denoiser
from featlens_trainers.training import stream

KEPT = (0.05, 0.1)
FLAT = 12**-0.5


def profile(t: np.ndarray, std: float, end: float) -> np.ndarray:
    g = exponent_of(std)
    return np.where(t <= end, (g + 1) * t**g / end ** (g + 1), 0.0)


# --- profiles -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [(0.05, 300), (0.2, 1000)])
@pytest.mark.parametrize("second", [(0.1, 700), (FLAT, 1000), (0.25, 40)])
def test_products_of_profiles_are_their_integrals(
    first: tuple[float, int], second: tuple[float, int]
) -> None:
    # The product has a jump at the lesser end, where the integral stops; midpoints of a fine grid.
    end = min(first[1], second[1])
    t = (np.arange(400_000) + 0.5) * end / 400_000
    expected = np.sum(profile(t, *first) * profile(t, *second)) * end / 400_000
    assert profile_product(first, second) == pytest.approx(expected, rel=1e-6)
    assert profile_product(first, second) == profile_product(second, first)


def test_the_error_is_the_distance_between_the_profiles() -> None:
    there = [(std, images) for images in (250, 500, 750, 1000) for std in KEPT]
    factors, error = reconstruction_weights(there, 0.15, 1000)
    t = (np.arange(200_000) + 0.5) / 200
    combined = sum(f * profile(t, *entry) for f, entry in zip(factors, there, strict=True))
    wished = profile(t, 0.15, 1000)
    distance = np.sqrt(np.mean((combined - wished) ** 2) / np.mean(wished**2))
    assert error == pytest.approx(distance, rel=1e-3)
    # Least squares: any other factors that add up to 1 are worse.
    assert factors.sum() == pytest.approx(1.0, abs=1e-9)
    for index in range(1, len(there)):
        moved = factors.copy()
        moved[index] += 1e-3
        moved[0] -= 1e-3
        other = sum(f * profile(t, *entry) for f, entry in zip(moved, there, strict=True))
        assert np.mean((other - wished) ** 2) > np.mean((combined - wished) ** 2)


def test_a_stored_average_is_its_own_reconstruction() -> None:
    there = [(std, images) for images in (250, 500, 1000) for std in KEPT]
    factors, error = reconstruction_weights(there, 0.1, 1000)
    np.testing.assert_allclose(factors, [0, 0, 0, 0, 0, 1], atol=1e-6)
    assert error < 1e-6


def test_factors_stay_moderate_and_add_up_to_one() -> None:
    there = [(std, images) for images in range(50, 1601, 50) for std in KEPT]
    for std in (0.03, 0.07, 0.15, 0.2, 0.25):
        factors, error = reconstruction_weights(there, std, 1600)
        assert factors.sum() == pytest.approx(1.0, abs=1e-9), std
        assert error < 0.15, std
        assert np.abs(factors).sum() < 100, std


# --- against averaging directly -----------------------------------------------------------------------------


def drifting(snapshot_every: int, stds: tuple[float, ...]) -> tuple[Training, list[PowerSnapshot]]:
    """A small network whose weights drift and jitter, with averages kept and some stored."""
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)).double()
    for number, parameter in enumerate(network.parameters()):
        nn.init.constant_(parameter, 100.0 + number)  # the initial weights must count nothing
    networks, averages = tracked(network, {f"ema-power{std}": Power(std) for std in stds})
    training = Training({"net": network, **networks}, {}, averages)
    stored = []
    while training.images < 6_400:
        step = training.images // 10
        with torch.no_grad():
            for number, parameter in enumerate(network.parameters()):
                jitter = torch.randn(parameter.shape, generator=stream(1, step, number)).double()
                parameter.copy_(np.log1p(step / 30.0) * (number + 1) + 0.3 * jitter)
        training.advance(10)
        if training.images % snapshot_every == 0:
            stored += [stored_average(training, std) for std in KEPT]
    return training, stored


def stored_average(training: Training, std: float) -> PowerSnapshot:
    state = {k: v.clone() for k, v in training.networks[f"ema-power{std}"].state_dict().items()}
    return PowerSnapshot(std, training.images, lambda: state)


def distance(state: dict[str, Tensor], module: nn.Module) -> float:
    expected = module.state_dict()
    return max(float((state[name] - expected[name]).abs().max()) for name in expected)


@pytest.mark.parametrize("std", [0.07, 0.15, 0.2])
def test_reconstruction_comes_near_to_the_average_kept_in_training_with_more_snapshots(std: float) -> None:
    errors = []
    for every in (1_600, 400, 100):
        training, stored = drifting(every, (*KEPT, std))
        direct = training.networks[f"ema-power{std}"]
        errors.append(distance(reconstruct(stored, std), direct))
    # The weights move by 5 to 20 on the way, and jitter by 0.3.
    assert errors[0] > 3 * errors[1] > 9 * errors[2], errors
    assert errors[2] < 0.001, errors
    other = distance(reconstruct(stored, std * 0.6), direct)
    assert other > 20 * errors[2]


def test_an_earlier_end_can_be_chosen() -> None:
    training, stored = drifting(100, (*KEPT, 0.15))
    early = reconstruct(stored, 0.15, images=3_200)
    half = [entry for entry in stored if entry.images <= 3_200]
    assert all(torch.equal(early[name], tensor) for name, tensor in reconstruct(half, 0.15).items())
    assert distance(early, training.networks["ema-power0.15"]) > 0.1


def test_weights_that_never_move_are_given_back() -> None:
    still = {"weight": torch.tensor([3.0, -700.0], dtype=torch.float64)}
    stored = [PowerSnapshot(std, images, lambda: still) for images in (100, 500) for std in KEPT]
    torch.testing.assert_close(reconstruct(stored, 0.2), still, rtol=1e-10, atol=0)


def test_counters_are_the_newest_ones() -> None:
    def state(count: int) -> dict[str, Tensor]:
        return {"weight": torch.full((2,), float(count)), "steps": torch.tensor(count)}

    snapshots = [PowerSnapshot(0.1, n * 100, lambda n=n: state(n)) for n in (3, 1, 2)]  # type: ignore[misc]
    out = reconstruct(snapshots, 0.1)
    assert int(out["steps"]) == 3
    assert out["weight"].dtype == torch.float32


# --- run folders --------------------------------------------------------------------------------------------

TINY = UNetConfig(4, channels=8, channel_mult=(1,), attention_resolutions=())


def trained(folder: Path, images: int = 320) -> Training:
    config = TeacherConfig(images=images, batch=8, lr=1e-2, ramp_images=16, ema_powers=(0.05, 0.1, 0.15))
    training = start_teacher(build_denoiser(TINY, 0.5, 0), config)
    data = torch.randn(20, 1, 4, 4, generator=stream(3)).clamp(-1, 1)
    for step in train_teacher(training, data, config, seed=0):
        if step.images % 40 == 0:
            save_averages(folder / "snapshots" / f"img-{step.images:08d}", training, sigma_init=2.5)
    for path in folder.glob("snapshots/*/ema-power0.15.safetensors"):
        path.unlink()
    return training


def test_a_run_folder_gives_any_average(tmp_path: Path) -> None:
    training = trained(tmp_path)
    found = find_snapshots(tmp_path)
    assert [(entry.images, entry.std) for entry in found[:3]] == [(40, 0.05), (40, 0.1), (80, 0.05)]
    assert len(found) == 16
    denoiser, about = posthoc_denoiser(tmp_path, 0.15)
    direct = training.networks["ema-power0.15"]
    stored = [training.networks[name].state_dict() for name in ("ema-power0.1", "ema-power0.05")]
    nearest = min(distance(state, direct) for state in stored)
    assert distance(denoiser.state_dict(), direct) < 0.05 * nearest
    assert about["posthoc"]["std"] == 0.15
    assert about["posthoc"]["images"] == about["images"] == 320
    assert 0 < about["posthoc"]["profile_error"] < 0.2
    assert not denoiser.training


def test_the_condition_on_the_sum_keeps_what_does_not_move(tmp_path: Path) -> None:
    training = trained(tmp_path)
    direct = training.networks["ema-power0.15"]
    found = find_snapshots(tmp_path)
    there = [(entry.std, entry.images) for entry in found]
    gram = np.array([[profile_product(a, b) for b in there] for a in there])
    wished = np.array([profile_product(a, (0.15, 320)) for a in there])
    free = np.linalg.solve(gram, wished)
    assert 0.001 < abs(free.sum() - 1) < 0.01
    without: dict[str, Tensor] = {}
    for entry, factor in zip(found, free.tolist(), strict=True):
        for name, tensor in entry.load().items():
            without[name] = without.get(name, 0) + factor * tensor.double()
    assert distance(reconstruct(found, 0.15), direct) < 0.1 * distance(without, direct)


def test_a_written_average_loads_as_any_snapshot(tmp_path: Path) -> None:
    trained(tmp_path, images=160)
    told = write_posthoc(tmp_path, 0.2, tmp_path / "out.safetensors", images=120)
    denoiser, about = load_denoiser(tmp_path / "out.safetensors")
    expected, _ = posthoc_denoiser(tmp_path, 0.2, images=120)
    assert distance(denoiser.state_dict(), expected) == 0
    assert about["sigma_init"] == 2.5
    assert about["posthoc"] == told["posthoc"]


def test_files_of_other_names_are_left_alone(tmp_path: Path) -> None:
    for name in ("img-00000040/ema.safetensors", "img-00000040/ema-powerful.safetensors"):
        (tmp_path / "snapshots" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "snapshots" / name).write_bytes(b"")
    for name in ("img-x/ema-power0.1.safetensors", "img-00000040/ema-power9.safetensors"):
        (tmp_path / "snapshots" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "snapshots" / name).write_bytes(b"")
    assert find_snapshots(tmp_path) == []
    with pytest.raises(FeatlensError, match=r"no snapshots of power-function averages.*ema_powers"):
        posthoc_denoiser(tmp_path, 0.1)


# --- refusals -----------------------------------------------------------------------------------------------


def snapshot(images: int, size: int = 2) -> PowerSnapshot:
    return PowerSnapshot(0.1, images, lambda: {"weight": torch.zeros(size)})


def test_what_cannot_be_put_together_is_refused() -> None:
    with pytest.raises(UsageError, match="no stored power-function averages"):
        reconstruct([], 0.1)
    with pytest.raises(UsageError, match=r"relative width must be above 0 and at most 0\.2887"):
        reconstruct([snapshot(100)], 0.5)
    with pytest.raises(UsageError, match="must be those of a snapshot, got 300; nearest: 100 or 200"):
        reconstruct([snapshot(100), snapshot(200)], 0.1, images=300)
    with pytest.raises(FeatlensError, match="different networks: 1 tensors differ, first 'weight'"):
        reconstruct([snapshot(100), snapshot(200, size=3)], 0.1)
