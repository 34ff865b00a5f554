"""Distillation of a one-step generator, score-free or score-based: the whole loop, to be read at once."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from featlens.denoiser import Denoiser, EDMDenoiser, column
from featlens.errors import UsageError, choices_hint
from featlens.seeds import derive
from featlens_trainers.batches import Batches, balanced_labels
from featlens_trainers.data import ImageData, as_data, read_ahead
from featlens_trainers.directions import Direction, Noised, make_direction
from featlens_trainers.ema import profiles, tracked
from featlens_trainers.engine import Engine
from featlens_trainers.networks import FakeScoreRatio, RatioNetwork
from featlens_trainers.noise import draw_sigma
from featlens_trainers.sampler import OneStepGenerator
from featlens_trainers.settings import DistillConfig, NoiseConfig
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

__all__ = ["distill", "make_direction", "start_distillation"]


def start_distillation(student: nn.Module, critic: nn.Module, config: DistillConfig) -> Training:
    """Fresh state for :func:`distill` from an initialised student and critic.

    The critic is a ratio network, or for the score-based directions a denoiser, the fake score; it is held
    under the name ``"ratio"`` or ``"fake_score"``.
    """
    name = "ratio" if config.direction == "ratio" else "fake_score"
    _require_fitting_critic(student, critic, config)
    betas = (config.beta1, config.beta2)
    networks, averages = tracked(
        student,
        profiles(config.ema_half_life, config.ema_ramp, config.ema_half_lives, config.ema_powers),
    )
    return Training(
        {"net": student, **networks, name: critic},
        {
            "net": torch.optim.Adam(student.parameters(), lr=config.lr, betas=betas, fused=True),
            name: torch.optim.Adam(critic.parameters(), lr=config.ratio_lr, betas=betas, fused=True),
        },
        averages,
    )


def distill(
    training: Training,
    data: ImageData | Tensor,
    config: DistillConfig,
    seed: int,
    labels: Tensor | None = None,
    direction: Direction | None = None,
    engine: Engine | None = None,
    teacher: Denoiser | None = None,
) -> Iterator[Step]:
    """Distil ``training`` in place until ``config.images`` images were seen, yielding each step.

    Each step draws latents and real images, updates the critic on equally noised real and generated images
    (``critic_updates`` times, each on a batch of its own), then moves the generator by the direction's
    gradient in image space, at noise levels drawn anew. In several parts, images are generated twice.

    Parameters
    ----------
    training
        From :func:`start_distillation`, or one that was saved.
    data
        Real images in [-1, 1], numbered and read in batches, or a tensor of them, (N, C, H, W).
    config, seed
        Settings; all randomness is a function of ``seed`` and the images seen.
    labels
        (N,) int64, with a tensor of images, for a conditional student.
    direction
        One of one's own (default: what ``config`` names).
    engine
        Where and how to compute (default: where the student is, in float32, the batch at once).
    teacher
        Denoiser that the score-based directions compare with.
    """
    data = as_data(data, labels)
    engine = engine or Engine(next(training.networks["net"].parameters()).device)
    direction = direction or make_direction(config, training, teacher, engine)
    _require_critic(training, direction)
    batches = _Batches(training.networks["net"], data, config, seed, engine)
    losses = _Losses(training, direction, config, engine)
    critic = direction.critic
    while training.images < config.images:
        at = training.images
        moves = at >= config.warmup
        numbers = stream(seed, "distill", at)
        with seeded(seed, "dropout", at):
            for turn in range(config.critic_updates):
                parts = batches.draw(at, turn, numbers)
                # The generator moves on the images of the critic's last update; their graph is made once.
                keep = moves and turn == config.critic_updates - 1
                optimizer = _ready(training, critic, config, batches.start(at, turn))
                what = f"the {critic.replace('_', ' ').replace('ratio', 'ratio network')}'s loss"
                update(engine, optimizer, losses.of_critic(parts, keep), what, at, batches.advise)
            if moves:
                batches.draw_noise(parts, config.noise, numbers)
                optimizer = _ready(training, "net", config, at - config.warmup)
                what = "the generator's gradient"
                update(engine, optimizer, losses.of_generator(parts), what, at, batches.advise)
        training.advance(config.batch)
        yield Step(training.images, losses.scalars())


class _Losses:
    """Losses of both networks, one a part of the batch, and the scalars of a step."""

    def __init__(
        self, training: Training, direction: Direction, config: DistillConfig, engine: Engine
    ) -> None:
        student = engine.faster(training.networks["net"])
        self.generator = OneStepGenerator(student, config.sigma_init).train()
        training.networks[direction.critic].train()
        self.direction, self.engine = direction, engine
        self._seen: dict[str, list[Tensor]] = {}
        self._parts = len(engine.parts(config.batch))

    def of_critic(self, parts: list[_Part], keep: bool) -> Iterator[Tensor]:
        """The critic's; generated images are kept with their graph if asked, and if there is one part."""
        for part in parts:
            part.set_masks()
            kept = keep and len(parts) == 1
            with self.engine.autocast():
                with torch.set_grad_enabled(kept):
                    fake = self.generator(part.z, part.labels)
                part.fake = fake if kept else None
                real = Noised.of(part.real, part.sigma, part.noise_real, part.real_labels)
                made = Noised.of(fake, part.sigma, part.noise_fake, part.labels)
                loss, scalars = self.direction.critic_loss(real, made)
            self._note(scalars)
            # Nothing may hold on to a part while the next is worked through.
            del fake, real, made, scalars
            yield loss

    def of_generator(self, parts: list[_Part]) -> Iterator[Tensor]:
        """Scalars whose gradients in the generated images are the direction's."""
        for part in parts:
            part.set_masks()
            with self.engine.autocast():
                fake = self.generator(part.z, part.labels) if part.fake is None else part.fake
                part.fake = None
                noised = fake + column(part.sigma, fake) * part.noise_fake
                sample = Noised(fake.detach(), noised.detach(), part.sigma, part.labels)
                # Numbers without a graph: nothing but the generator can receive a gradient from here on.
                gradient = self.direction.image_gradient(sample).detach()
                _require_image(gradient, fake)
            self._note({"gradient_norm": gradient.flatten(1).norm(dim=1).mean()})
            loss = (gradient * noised).flatten(1).sum(1).mean()
            del fake, noised, sample, gradient
            yield loss

    def _note(self, scalars: Mapping[str, Tensor]) -> None:
        for name, value in scalars.items():
            self._seen[name] = [*self._seen.get(name, []), value.detach()][-self._parts :]

    def scalars(self) -> dict[str, float]:
        """Means over parts and processes, of the last update of each network in this step."""
        seen, self._seen = self._seen, {}
        return {name: float(self.engine.mean(torch.stack(values).mean())) for name, values in seen.items()}


# --- what a step draws --------------------------------------------------------------------------------------


@dataclass
class _Part:
    """One part of a batch: what it sees, on the device."""

    place: slice
    masks: int | None
    real: Tensor
    real_labels: Tensor | None
    labels: Tensor | None
    z: Tensor
    sigma: Tensor
    noise_real: Tensor
    noise_fake: Tensor
    fake: Tensor | None = None

    def set_masks(self) -> None:
        """Dropout of a part depends on its place alone, so that it generates the same images twice."""
        if self.masks is not None:
            torch.manual_seed(self.masks)


class _Batches:
    """Batches in parts: everything is drawn for the whole batch; a process takes what it works on."""

    def __init__(
        self, student: nn.Module, data: ImageData, config: DistillConfig, seed: int, engine: Engine
    ) -> None:
        self.data, self.config, self.seed, self.engine = data, config, seed, engine
        self.classes = _classes(student, data, config)
        labels = getattr(data, "labels", None)
        self.rows = Batches(len(data), config.batch, seed, labels, config.balanced)
        self.places = engine.parts(config.batch)
        self.whole = self.places == [slice(0, config.batch)]

    def start(self, at: int, turn: int) -> int:
        """Images that the critic has seen before its update number ``turn`` after ``at`` images."""
        return at * self.config.critic_updates + turn * self.config.batch

    def draw(self, at: int, turn: int, numbers: torch.Generator) -> list[_Part]:
        """Images, labels, latents and noise of the critic's update number ``turn`` after ``at`` images."""
        config, device = self.config, self.engine.device
        start = self.start(at, turn)
        rows = self.rows(start)
        self.advise = functools.partial(why_not_finite, self.data, rows)
        asked = None
        if self.classes and config.fake_labels == "balanced":
            lots = stream(self.seed, "labels", at, turn)
            asked = balanced_labels(config.batch, self.classes, lots).to(device)
        z = torch.randn((config.batch, *self.data.shape), generator=numbers)
        empty = z.new_empty(0)
        parts = []
        for place in self.places:
            real, labels = self.data.batch(rows[place])
            labels = None if labels is None or self.classes == 0 else labels.to(device)
            wanted = labels if asked is None else asked[place]
            masks = None if self.whole else derive(self.seed, "masks", at, turn, place.start)
            parts.append(
                _Part(place, masks, real.to(device), labels, wanted, z[place].to(device), empty, empty, empty)
            )
        end = config.images * config.critic_updates
        read_ahead(self.data, self.rows, start + config.batch, end, self.places)
        self.draw_noise(parts, config.critic_noise or config.noise, numbers)
        return parts

    def draw_noise(self, parts: list[_Part], noise: NoiseConfig, numbers: torch.Generator) -> None:
        """Give each part noise levels and noise of its own, anew."""
        batch, device = self.config.batch, self.engine.device
        sigma = draw_sigma(noise, batch, numbers)
        first, second = (torch.randn((batch, *self.data.shape), generator=numbers) for _ in range(2))
        for part in parts:
            part.sigma = sigma[part.place].to(device)
            part.noise_real = first[part.place].to(device)
            part.noise_fake = second[part.place].to(device)


def _ready(training: Training, name: str, config: DistillConfig, images: int) -> torch.optim.Optimizer:
    """The optimiser of a network that has been trained on so many images, at the learning rate of now."""
    optimizer = training.optimizers[name]
    if config.ramp_images:
        most = config.lr if name == "net" else config.ratio_lr
        set_learning_rate(optimizer, learning_rate(images + config.batch, most, config.ramp_images))
    return optimizer


# --- what does not fit --------------------------------------------------------------------------------------


def _require_fitting_critic(student: nn.Module, critic: nn.Module, config: DistillConfig) -> None:
    direction = config.direction
    if direction == "ratio" and isinstance(critic, EDMDenoiser):
        raise UsageError(
            "the direction 'ratio' needs a ratio network as critic, got a denoiser; give a network of "
            "build_ratio, or set direction to 'diff_instruct', 'sid' or 'dmd2'"
        )
    if direction != "ratio" and isinstance(critic, RatioNetwork | FakeScoreRatio):
        raise UsageError(
            f"the direction {direction!r} needs a denoiser, the fake score, as critic, got a "
            f"{type(critic).__name__}; give a network of build_denoiser, or set direction to 'ratio'"
        )
    own, other = (getattr(network, "num_labels", None) for network in (student, critic))
    if own is not None and other is not None and own != other:
        raise UsageError(
            f"student and critic need the same number of classes, got {own} and {other}; build both with the "
            "same network settings"
        )


def _classes(student: nn.Module, data: ImageData, config: DistillConfig) -> int | None:
    """Number of classes of the student, 0 if it is unconditional, None if it does not say."""
    classes: int | None = getattr(student, "num_labels", None)
    if classes and not data.num_labels:
        raise UsageError(
            f"the student is conditional on {classes} classes, but the images have no labels; give labels, "
            "or a network with labels = 0"
        )
    if classes and data.num_labels > classes:
        raise UsageError(
            f"the images have {data.num_labels} classes, but the student knows {classes}; set the network's "
            f"labels to {data.num_labels}"
        )
    if config.fake_labels == "balanced" and not classes:
        raise UsageError(
            "fake_labels = 'balanced' draws labels for a conditional student, and this one has no classes; "
            "set it to 'partner', or the network's labels above 0"
        )
    return classes


def _require_critic(training: Training, direction: Direction) -> None:
    if direction.critic not in training.networks or direction.critic not in training.optimizers:
        raise UsageError(
            f"the direction trains the critic {direction.critic!r}, which this training does not hold: "
            f"{choices_hint(direction.critic, training.networks)}; start_distillation names it by the "
            "direction in its settings"
        )


def _require_image(gradient: Tensor, fake: Tensor) -> None:
    if gradient.shape != fake.shape:
        raise UsageError(
            f"a direction's image_gradient returns one number for each pixel: expected {tuple(fake.shape)}, "
            f"got {tuple(gradient.shape)}"
        )
