"""Teachers: denoisers trained with EDM's loss, at all noise levels, a band or one, and regressed maps."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from featlens.denoiser import EDMDenoiser, column
from featlens.errors import UsageError, choices_hint
from featlens.seeds import derive, sample_noise
from featlens_trainers.augment import AUGMENT_LABELS, augmentation_labels, draw_augmentation, warp
from featlens_trainers.batches import Batches
from featlens_trainers.data import ImageData, as_data, read_ahead
from featlens_trainers.ema import profiles, tracked
from featlens_trainers.engine import Engine
from featlens_trainers.noise import draw_sigma
from featlens_trainers.sampler import OneStepGenerator, generate, heun_sample
from featlens_trainers.settings import RegressionConfig, TeacherConfig
from featlens_trainers.training import (
    Step,
    Training,
    learning_rate,
    seeded,
    set_learning_rate,
    stream,
    update,
    why_not_finite,
)

__all__ = ["TARGETS", "edm_loss", "ode_endpoints", "regress_map", "start_teacher", "train_teacher"]

TARGETS = ("one_step", "ode")
"""What :func:`regress_map` regresses on."""


def edm_loss(
    denoiser: EDMDenoiser,
    x0: Tensor,
    sigma: Tensor,
    noise: Tensor,
    labels: Tensor | None = None,
    augment_labels: Tensor | None = None,
) -> Tensor:
    """Weighted denoising loss (arXiv 2206.00364, equation 2): mean over the batch of the sum over pixels.

    ``x0`` and ``noise`` (B, C, H, W), ``sigma`` (B,), ``labels`` (B,) int64, ``augment_labels`` (B, 9) of
    :func:`featlens_trainers.augment.augment`.
    """
    told = () if augment_labels is None else (augment_labels,)
    estimate = denoiser(x0 + column(sigma, x0) * noise, sigma, labels, *told)
    weight = column(denoiser.scaling.loss_weight(sigma), x0)
    out: Tensor = (weight * (estimate - x0) ** 2).flatten(1).sum(1).mean()
    return out


def start_teacher(denoiser: EDMDenoiser, config: TeacherConfig | RegressionConfig) -> Training:
    """Fresh state for :func:`train_teacher` and :func:`regress_map`."""
    optimizer = torch.optim.Adam(denoiser.parameters(), betas=(0.9, 0.999), eps=1e-8, fused=True)
    half_lives = config.ema_half_lives if isinstance(config, TeacherConfig) else ()
    powers = config.ema_powers if isinstance(config, TeacherConfig) else ()
    networks, averages = tracked(
        denoiser, profiles(config.ema_half_life, config.ema_ramp, half_lives, powers)
    )
    return Training({"net": denoiser, **networks}, {"net": optimizer}, averages)


def train_teacher(
    training: Training,
    data: ImageData | Tensor,
    config: TeacherConfig,
    seed: int,
    labels: Tensor | None = None,
    engine: Engine | None = None,
) -> Iterator[Step]:
    """Train ``training`` in place until ``config.images`` images were seen, yielding each step.

    Parameters
    ----------
    training
        From :func:`start_teacher`, or one that was saved.
    data
        Images in [-1, 1], numbered and read in batches, or a tensor of them, (N, C, H, W).
    config, seed
        Settings; all randomness is a function of ``seed`` and the images seen.
    labels
        (N,) int64, with a tensor of images, for a conditional denoiser. Other data has its own.
    engine
        Where and how to compute (default: where the network is, in float32, the batch at once). What is drawn
        is drawn for the whole batch, so its parts and processes change nothing but rounding and the masks of
        dropout.
    """
    denoiser, optimizer = training.networks["net"], training.optimizers["net"]
    if not isinstance(denoiser, EDMDenoiser):
        raise UsageError(
            f"train_teacher trains an EDMDenoiser, got {type(denoiser).__name__}; start with start_teacher"
        )
    data = as_data(data, labels)
    _require_fitting(denoiser, data, config)
    engine = engine or _engine_of(denoiser)
    network = cast(EDMDenoiser, engine.faster(denoiser.train()))
    batches = Batches(len(data), config.batch, seed)
    places = engine.parts(config.batch)
    while training.images < config.images:
        draws = _draw(batches(training.images), data.shape, config, seed, training.images)
        losses = _denoising_losses(network, data, draws, engine)
        read_ahead(data, batches, training.images + config.batch, config.images, places)
        set_learning_rate(optimizer, _rate(training, config, config.images if config.decay else None))
        advise = functools.partial(why_not_finite, data, draws.rows)
        loss = update(engine, optimizer, losses, "the denoising loss", training.images, advise)
        training.advance(config.batch)
        yield Step(training.images, {"loss": loss})


@dataclass(frozen=True)
class _Draws:
    """What one step draws, for the whole batch and on the CPU."""

    rows: Tensor
    sigma: Tensor
    noise: Tensor
    warps: Tensor | None
    seed: int
    images: int


def _draw(rows: Tensor, shape: tuple[int, ...], config: TeacherConfig, seed: int, images: int) -> _Draws:
    numbers = stream(seed, "teacher", images)
    if config.sigma is None:
        sigma = draw_sigma(config.noise, config.batch, numbers)
    else:
        sigma = torch.full((config.batch,), config.sigma)
    noise = torch.randn((config.batch, *shape), generator=numbers)
    warps = None
    if config.augment:
        numbers = stream(seed, "augment", images)
        warps = draw_augmentation(config.batch, config.augment, numbers, config.augment_flip)
    return _Draws(rows, sigma, noise, warps, seed, images)


def _denoising_losses(
    network: EDMDenoiser, data: ImageData, draws: _Draws, engine: Engine
) -> Iterator[Tensor]:
    """Loss of each of this process's parts of the batch."""
    for part in engine.parts(len(draws.rows)):
        x0, labels = data.batch(draws.rows[part])
        x0 = x0.to(engine.device)
        told = None
        if draws.warps is not None:
            x0 = warp(x0, draws.warps[part])
            told = augmentation_labels(draws.warps[part]).to(engine.device)
        if labels is not None:
            labels = labels.to(engine.device) if network.num_labels else None
        sigma, noise = (drawn[part].to(engine.device) for drawn in (draws.sigma, draws.noise))
        with dropout_masks(draws.seed, draws.images, part), engine.autocast():
            loss = edm_loss(network, x0, sigma, noise, labels, told)
        yield loss


def dropout_masks(seed: int, images: int, part: slice) -> AbstractContextManager[None]:
    """Context in which the dropout of one part of a step's batch draws what its place says."""
    return seeded(seed, "dropout", images, *((part.start,) if part.start else ()))


def _rate(training: Training, config: TeacherConfig | RegressionConfig, total: int | None) -> float:
    return learning_rate(training.images + config.batch, config.lr, config.ramp_images, total)


def _engine_of(network: nn.Module) -> Engine:
    return Engine(next(network.parameters()).device)


def _require_fitting(denoiser: EDMDenoiser, data: ImageData, config: TeacherConfig) -> None:
    """Refuse data, labels or augmentation that the network is not made for."""
    if tuple(data.shape) != tuple(denoiser.sample_shape):
        raise UsageError(
            f"the network is for images of shape {tuple(denoiser.sample_shape)}, the data has "
            f"{tuple(data.shape)}; set the network's in_channels, out_channels and resolution to the data's"
        )
    if denoiser.num_labels and not data.num_labels:
        raise UsageError(
            f"the network is conditional ({denoiser.num_labels} labels) and the data has no labels; "
            "give labels, or set the network's labels to 0"
        )
    if denoiser.num_labels and data.num_labels > denoiser.num_labels:
        raise UsageError(
            f"the data has {data.num_labels} classes and the network {denoiser.num_labels} labels; "
            f"set the network's labels to {data.num_labels}"
        )
    augment_labels = getattr(getattr(denoiser.network, "config", None), "augment_labels", 0)
    if config.augment and augment_labels != AUGMENT_LABELS:
        raise UsageError(
            f"augmentation needs a network that is told of it by {AUGMENT_LABELS} numbers, this one has "
            f"augment_labels = {augment_labels}; set network.augment_labels to {AUGMENT_LABELS}, or "
            "augment to 0"
        )


# --- regression on the teacher's map ------------------------------------------------------------------------


def regress_map(
    training: Training,
    teacher: nn.Module,
    shape: tuple[int, ...],
    sigma_init: float,
    config: RegressionConfig,
    seed: int,
    target: str = "one_step",
    engine: Engine | None = None,
    endpoints: Tensor | None = None,
) -> Iterator[Step]:
    """Regress a network on a map of the teacher's from noise to images, yielding each step.

    The student is G(z) = D(sigma_init z; sigma_init), z standard normal. With the target ``"one_step"`` it is
    regressed on the teacher's own G(z), with new z at every step: the control ``map_regressed``, which has
    the teacher's map at ``sigma_init`` but none of its weights. With ``"ode"`` it is regressed on the end of
    the teacher's probability-flow ODE that starts at 80 z: the images that the teacher's sampler makes of the
    same z. Those are computed once, for ``config.bank`` latents with seeds, which the steps then go through
    in a new order each epoch. Loss: squared error, mean over the batch of the sum over pixels. For a
    conditional teacher labels are drawn evenly.

    Parameters
    ----------
    training
        From :func:`start_teacher`, or one that was saved.
    teacher, shape, sigma_init
        A trained denoiser, the shape (C, H, W) of its images, and where one-step generation starts.
    config, seed, engine
        As in :func:`train_teacher`.
    target
        ``"one_step"`` or ``"ode"``.
    endpoints
        For ``"ode"``: what :func:`ode_endpoints` returned for this teacher, configuration and seed, where it
        was kept; by default it is computed again, also when a run goes on.
    """
    if target not in TARGETS:
        raise UsageError(f"unknown target {target!r} of the regression: {choices_hint(target, TARGETS)}")
    network, optimizer = training.networks["net"], training.optimizers["net"]
    engine = engine or _engine_of(teacher)
    student = OneStepGenerator(engine.faster(network.train()), sigma_init)
    wanted = OneStepGenerator(teacher.eval(), sigma_init)
    if target == "ode" and endpoints is None:
        endpoints = ode_endpoints(teacher, shape, config, seed, engine.device)
    if target == "one_step":
        endpoints = None
    while training.images < config.images:
        draws = _draw_map(training.images, shape, config.batch, seed, _num_labels(teacher), endpoints)
        losses = _map_losses(student, wanted, draws, engine)
        set_learning_rate(optimizer, _rate(training, config, config.images))
        loss = update(engine, optimizer, losses, "the regression loss", training.images)
        training.advance(config.batch)
        yield Step(training.images, {"loss": loss})


@dataclass(frozen=True)
class _MapDraws:
    """Latents (B, C, H, W), labels (B,) and, where they are known beforehand, the images they belong to."""

    z: Tensor
    labels: Tensor | None
    endpoints: Tensor | None
    seed: int
    images: int


def _draw_map(
    images: int,
    shape: tuple[int, ...],
    batch: int,
    seed: int,
    num_labels: int,
    endpoints: Tensor | None,
) -> _MapDraws:
    if endpoints is None:
        numbers = stream(seed, "map", images)
        z = torch.randn((batch, *shape), generator=numbers)
        labels = torch.randint(num_labels, (batch,), generator=numbers) if num_labels else None
        return _MapDraws(z, labels, None, seed, images)
    rows = Batches(len(endpoints), batch, seed)(images)
    z = torch.from_numpy(sample_noise(derive(seed, "bank"), rows.numpy(), 0.0, shape))
    all_labels = _bank_labels(len(endpoints), num_labels, seed)
    return _MapDraws(z, None if all_labels is None else all_labels[rows], endpoints[rows], seed, images)


def _map_losses(
    student: OneStepGenerator, wanted: OneStepGenerator, draws: _MapDraws, engine: Engine
) -> Iterator[Tensor]:
    for part in engine.parts(len(draws.z)):
        z = draws.z[part].to(engine.device)
        labels = None if draws.labels is None else draws.labels[part].to(engine.device)
        with engine.autocast():
            if draws.endpoints is None:
                with torch.no_grad():
                    images = wanted(z, labels)
            else:
                images = draws.endpoints[part].to(engine.device)
            with dropout_masks(draws.seed, draws.images, part):
                loss = ((student(z, labels) - images) ** 2).flatten(1).sum(1).mean()
        yield loss


@torch.no_grad()
def ode_endpoints(
    teacher: nn.Module,
    shape: tuple[int, ...],
    config: RegressionConfig,
    seed: int,
    device: torch.device | str = "cpu",
    batch: int = 256,
) -> Tensor:
    """Images (config.bank, C, H, W) on the CPU at the end of the teacher's ODE that starts at 80 z.

    Image i belongs to latent i of the bank, which depends on (``seed``, i) only; Heun's method makes
    ``config.heun_steps`` steps from sigma = 80 (arXiv 2206.00364, algorithm 1).
    """
    labels = _bank_labels(config.bank, _num_labels(teacher), seed)
    sampler = functools.partial(heun_sample, teacher.eval(), steps=config.heun_steps)
    return generate(sampler, config.bank, shape, derive(seed, "bank"), batch, device, labels)


def _bank_labels(count: int, num_labels: int, seed: int) -> Tensor | None:
    if not num_labels:
        return None
    return torch.randint(num_labels, (count,), generator=stream(seed, "bank labels"))


def _num_labels(network: nn.Module) -> int:
    return int(getattr(network, "num_labels", 0))
