"""What losses do not say: how good the ratio network is at each noise level, how diverse the student is.

The losses of a distillation oscillate whether it converges or not. At an evaluation point each noise level is
looked at by itself: can the ratio network tell real from generated (AUC), is its logit a log ratio
(cross-entropy, calibration), how strong is the direction sigma^2 grad h, and how far is it from what a
trained teacher knows, D_teacher - D_student.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featlens_trainers.data import ImageData
from featlens_trainers.noise import draw_sigma
from featlens_trainers.settings import NoiseConfig
from featlens_trainers.settings.diagnostics import DiagnosticsConfig
from featlens_trainers.training import stream

__all__ = ["Diagnosis", "SigmaBin", "auc", "bin_shares", "calibration_error", "diagnose", "ideal_denoiser"]

LEAST_NEIGHBOURS = 2.0
"""Below this effective number of images the ideal denoiser of a bank shows single images."""

CHUNK = 64
"""Images that go through a network at once: a step's share of a large network, not all that are looked at."""


@dataclass(frozen=True)
class SigmaBin:
    """One noise level.

    Attributes
    ----------
    sigma
        Noise level.
    auc
        Chance that a noised real image has a higher logit than a noised generated one; 0.5 if they are equal.
    bce
        Binary cross-entropy of real against generated in nats, mean of both halves; ln 2 = 0.693 if equal.
    calibration
        Expected calibration error: how far the classifier's probabilities are from the frequencies.
    gradient
        Mean norm of sigma^2 grad h at noised generated images, in units of the image.
    pull
        The same times the divergence's weight r^2 f''(r): what reaches the generator.
    teacher_gap, teacher_cosine
        Relative error and cosine of sigma^2 grad h to D_teacher - D_student, with D_student the ideal
        denoiser of generated images, of the same class where the teacher is conditional; NaN without a
        teacher, or where too few of them carry it.
    neighbours
        Effective number of generated images behind that ideal denoiser.
    """

    sigma: float
    auc: float = math.nan
    bce: float = math.nan
    calibration: float = math.nan
    gradient: float = math.nan
    pull: float = math.nan
    teacher_gap: float = math.nan
    teacher_cosine: float = math.nan
    neighbours: float = math.nan


@dataclass(frozen=True)
class Diagnosis:
    """All noise levels at one moment of a distillation.

    Attributes
    ----------
    images
        Images seen.
    bins
        One entry a noise level.
    diversity
        Mean distance between two generated images over that between two real ones.
    """

    images: int
    bins: tuple[SigmaBin, ...]
    diversity: float

    def metrics(self) -> dict[str, Any]:
        """The same as plain numbers for ``stats.jsonl``; lists over sigma, None where there is no value."""
        table = [asdict(entry) for entry in self.bins]
        lists = {key: [_plain(row[key]) for row in table] for key in SigmaBin.__dataclass_fields__}
        return {"diversity": _plain(self.diversity), "bins": lists}


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def auc(real: Tensor, fake: Tensor) -> float:
    """Area under the ROC curve of scores (n,) of real against (m,) of generated images; ties count half.

    >>> auc(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 2.0]))
    0.875
    """
    scores = torch.cat([real, fake]).double()
    ordered, inverse, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    # The rank of tied scores is the middle of the places that they share.
    middle = counts.cumsum(0).double() - (counts.double() - 1) / 2
    ranks = middle[inverse][: len(real)]
    del ordered
    return float((ranks.sum() - len(real) * (len(real) + 1) / 2) / (len(real) * len(fake)))


def calibration_error(real: Tensor, fake: Tensor, bins: int = 10) -> float:
    """Expected calibration error of logits (n,), (m,) in ``bins`` equally filled bins (arXiv 1706.04599).

    Mean over bins of the difference between the mean predicted probability of "real" and its frequency.
    """
    logits = torch.cat([real, fake]).double()
    truth = torch.cat([torch.ones(len(real)), torch.zeros(len(fake))]).double().to(logits.device)
    order = logits.argsort()
    parts = zip(logits.sigmoid()[order].tensor_split(bins), truth[order].tensor_split(bins), strict=True)
    gaps = [(len(p), float((p.mean() - t.mean()).abs())) for p, t in parts if len(p)]
    return sum(count * gap for count, gap in gaps) / len(logits)


def ideal_denoiser(
    x: Tensor, sigma: float, bank: Tensor, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The denoiser of the distribution of ``bank`` (M, ...) at ``x`` (B, ...), and its neighbours (B,).

    ``D(x) = sum_i w_i y_i`` with ``w = softmax(-|x - y_i|^2 / (2 sigma^2))`` (arXiv 2206.00364, appendix
    B.3); the effective number of neighbours is ``1 / sum_i w_i^2``. With ``allowed`` (B, M) each x has only
    those images; where there is none, the answer is 0 and the number of neighbours 0.
    """
    distance = torch.cdist(x.flatten(1), bank.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    logits = -distance.square() / (2 * sigma**2)
    if allowed is None:
        weight = torch.softmax(logits, dim=1)
    else:
        weight = torch.softmax(logits.masked_fill(~allowed, -math.inf), dim=1)
        weight = weight.masked_fill(~allowed.any(1, keepdim=True), 0.0)
    total = weight.square().sum(1)
    neighbours = torch.where(total > 0, 1 / total, total)
    return (weight @ bank.flatten(1)).reshape(x.shape), neighbours


Generator = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class _Looked:
    """Images that are looked at: real ones, generated ones, their labels."""

    real: Tensor
    fake: Tensor
    labels: Tensor | None


@dataclass(frozen=True)
class _Bank:
    """Generated images (M, C, H, W) and, where classes are kept apart, their labels (M,)."""

    images: Tensor
    labels: Tensor | None


def bin_shares(sigmas: Sequence[float], noise: NoiseConfig) -> list[float]:
    """How often ``noise`` draws a level that is nearest, on a log scale, to each of ``sigmas``; sums to 1.

    >>> from featlens_trainers.settings import NoiseConfig
    >>> bin_shares([0.1, 1.0, 10.0], NoiseConfig(kind="fixed", sigma=2.0))
    [0.0, 1.0, 0.0]
    """
    drawn = draw_sigma(noise, 4096, stream(0, "bins")).double().log()
    centres = torch.tensor(list(sigmas), dtype=torch.float64).log()
    nearest = (drawn[:, None] - centres[None]).abs().argmin(1)
    return [float(share) for share in torch.bincount(nearest, minlength=len(centres)) / len(drawn)]


@torch.no_grad()
def diagnose(
    generator: Generator,
    ratio: nn.Module | None,
    data: ImageData,
    config: DiagnosticsConfig,
    seed: int,
    images: int,
    teacher: nn.Module | None = None,
    weight: Callable[[Tensor], Tensor] | None = None,
    device: torch.device | str = "cpu",
) -> Diagnosis:
    """Diagnosis of a student ``generator(z, labels)`` after so many ``images``; nothing is changed.

    Parameters
    ----------
    generator
        From latents (B, C, H, W) and labels (B,) or None to images.
    ratio
        The ratio network h(x, sigma, labels); None for score-based directions, which have none.
    data
        Real images; rows, latents and noise are drawn by (seed, images).
    config
        Noise levels and numbers.
    seed, images
        Seed of the draws, and images seen.
    teacher
        Denoiser of the real images, where there is one.
    weight
        The divergence's weight as a function of h (:attr:`featlens_trainers.Divergence.weight`); 1 if None.
    device
        Where the networks are.
    """
    numbers = stream(seed, "diagnose", images)
    many = config.images
    rows = torch.randint(len(data), (many,), generator=numbers)
    real, labels = data.batch(rows)
    real = real.to(device)
    labels = None if labels is None else labels.to(device)
    fake = _generated(generator, torch.randn(real.shape, generator=numbers), labels, device)
    bank = None
    if teacher is not None and ratio is not None and config.bank:
        more = torch.randint(len(data), (config.bank,), generator=numbers)
        many_labels = None if labels is None else data.batch(more)[1]
        many_labels = None if many_labels is None else many_labels.to(device)
        z = torch.randn((config.bank, *real.shape[1:]), generator=numbers)
        made = _generated(generator, z, many_labels, device)
        bank = _Bank(made, many_labels if getattr(teacher, "num_labels", 0) else None)
    bins = []
    was = ratio.training if ratio is not None else False
    if ratio is not None:
        ratio.eval()
    try:
        for sigma in config.sigmas:
            noise = torch.randn((2, *real.shape), generator=numbers).to(device)
            noised = _Looked(real + sigma * noise[0], fake + sigma * noise[1], labels)
            bins.append(
                SigmaBin(sigma) if ratio is None else _look(sigma, noised, ratio, weight, teacher, bank)
            )
    finally:
        if ratio is not None:
            ratio.train(was)
    return Diagnosis(images, tuple(bins), _spread(fake) / max(_spread(real), 1e-12))


def _generated(generator: Generator, z: Tensor, labels: Tensor | None, device: torch.device | str) -> Tensor:
    """Images of latents, some at a time."""
    return torch.cat(
        [generator(z[part].to(device), None if labels is None else labels[part]) for part in _chunks(len(z))]
    )


def _chunks(count: int) -> list[slice]:
    return [slice(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]


def _spread(images: Tensor) -> float:
    """Mean distance between two different images."""
    return float(torch.pdist(images.flatten(1).float()).mean())


def _look(
    sigma: float,
    noised: _Looked,
    ratio: nn.Module,
    weight: Callable[[Tensor], Tensor] | None,
    teacher: nn.Module | None,
    bank: _Bank | None,
) -> SigmaBin:
    real_logits, fake_logits, directions = [], [], []
    for part in _chunks(len(noised.real)):
        labels = None if noised.labels is None else noised.labels[part]
        leaf = noised.fake[part].detach().requires_grad_(True)
        level = leaf.new_full((len(leaf),), sigma)
        real_logits.append(ratio(noised.real[part], level, labels))
        with torch.enable_grad():
            fake_logit = ratio(leaf, level, labels)
            (slope,) = torch.autograd.grad(fake_logit.sum(), leaf)
        fake_logits.append(fake_logit.detach())
        directions.append(sigma**2 * slope)
    real_logit, fake_logit, direction = map(torch.cat, (real_logits, fake_logits, directions))
    norm = direction.flatten(1).norm(dim=1)
    found: dict[str, float] = {
        "auc": auc(real_logit, fake_logit),
        "bce": float(
            (nn.functional.softplus(-real_logit).mean() + nn.functional.softplus(fake_logit).mean()) / 2
        ),
        "calibration": calibration_error(real_logit, fake_logit),
        "gradient": float(norm.mean()),
        "pull": float((norm * (weight or torch.ones_like)(fake_logit)).mean()),
    }
    if teacher is not None and bank is not None:
        found |= _against_teacher(direction, noised.fake, sigma, noised.labels, teacher, bank)
    return SigmaBin(sigma, **found)


def _against_teacher(
    direction: Tensor, x: Tensor, sigma: float, labels: Tensor | None, teacher: nn.Module, bank: _Bank
) -> Mapping[str, float]:
    """Relative error and cosine of the direction to D_teacher - D_student."""
    # Of a conditional teacher the difference is within a class: the student's share of it is so as well.
    allowed = None if bank.labels is None or labels is None else labels[:, None] == bank.labels[None]
    student, neighbours = ideal_denoiser(x, sigma, bank.images, allowed)
    carried = float(neighbours.median())
    if carried < LEAST_NEIGHBOURS:
        return {"neighbours": carried}
    estimates = [
        teacher(x[part], x.new_full((len(x[part]),), sigma), None if labels is None else labels[part])
        for part in _chunks(len(x))
    ]
    known = neighbours > 0
    wanted = (torch.cat(estimates) - student).flatten(1)[known]
    flat = direction.flatten(1)[known]
    gap = (flat - wanted).norm(dim=1).square().mean().sqrt() / wanted.norm(dim=1).square().mean().sqrt()
    cosine = nn.functional.cosine_similarity(flat, wanted, dim=1).mean()
    return {"teacher_gap": float(gap), "teacher_cosine": float(cosine), "neighbours": carried}
