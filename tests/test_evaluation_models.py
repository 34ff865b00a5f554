"""Generators: labels, candidates, best of k, and evaluation of anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from featlens import SampleSet
from featlens.errors import FeatlensError, UsageError
from featlens.seeds import sample_noise
from featlens_trainers import OneStepGenerator, UNetConfig, build_denoiser
from featlens_trainers.evaluation import Evaluation, Extractor, Images, Inputs, Ranker, best_of, images_of
from featlens_trainers.evaluation.best_of import candidate_latents, draw_labels
from featlens_trainers.evaluation.models import open_model
from featlens_trainers.sampler import heun_sample, latents
from featlens_trainers.settings import BestOfConfig, MetricConfig
from featlens_trainers.snapshots import save_denoiser

SHAPE = (1, 2, 2)


class Bright:
    """A ratio network whose logit is the mean pixel of what it is shown; keeps what it was shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[Tensor, float, Tensor | None]] = []

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        self.shown.append((x, float(sigma[0]), labels))
        return x.mean((1, 2, 3))


def ranker(sigmas: Sequence[float] = (1e-6,)) -> Ranker:
    return Ranker(Bright(), BestOfConfig(tuple(sigmas)), seed=0)


def plain(z: Tensor, labels: Tensor | None = None) -> Tensor:
    return z if labels is None else z + 100 * labels[:, None, None, None]


# --- labels -------------------------------------------------------------------------------------------------


def test_labels_are_balanced_shuffled_and_depend_on_their_number_alone() -> None:
    labels = draw_labels(3, 0, 40, 8)
    assert all(sorted(part.tolist()) == list(range(8)) for part in labels.split(8))
    assert len({tuple(part.tolist()) for part in labels.split(8)}) > 1
    assert torch.equal(draw_labels(3, 13, 20, 8), labels[13:33])
    assert not torch.equal(draw_labels(4, 0, 40, 8), labels)


# --- best of k ----------------------------------------------------------------------------------------------


def test_the_best_candidate_is_kept_and_fewer_candidates_are_the_first_of_more() -> None:
    found = best_of(plain, ranker(), (1, 2, 4), 7, 5, 30, SHAPE)
    candidates = torch.stack([candidate_latents(7, 5, 30, c, SHAPE) for c in range(4)])
    means = candidates.mean((2, 3, 4))
    for k, images in found.items():
        wanted = candidates[means[:k].argmax(0), torch.arange(30)]
        torch.testing.assert_close(images, wanted)
    assert torch.equal(found[1], latents(7, 5, 30, SHAPE))
    gain = [float(images.mean()) for images in found.values()]
    assert gain == sorted(gain)


def test_an_image_depends_on_its_number_alone() -> None:
    whole = best_of(plain, ranker((0.5,)), (3,), 7, 0, 12, SHAPE)[3]
    parts = [best_of(plain, ranker((0.5,)), (3,), 7, first, 4, SHAPE)[3] for first in (0, 4, 8)]
    assert torch.equal(torch.cat(parts), whole)


def test_one_candidate_needs_no_ratio_network() -> None:
    rank = ranker()
    best_of(plain, rank, (1,), 7, 0, 4, SHAPE)
    assert rank.ratio.shown == []


def test_candidates_of_an_image_are_ranked_under_the_same_noise_at_every_level() -> None:
    rank = ranker((0.2, 1.5))
    scores = rank(torch.zeros(3, *SHAPE), range(4, 7), torch.tensor([1, 0, 2]))
    (first, low, labels), (second, high, _) = rank.ratio.shown
    assert (low, high) == (pytest.approx(0.2), 1.5) and labels.tolist() == [1, 0, 2]
    np.testing.assert_allclose(first, 0.2 * sample_noise(rank.seed, [4, 5, 6], 0.2, SHAPE), rtol=1e-6)
    np.testing.assert_allclose(scores, (first.mean((1, 2, 3)) + second.mean((1, 2, 3))) / 2, rtol=1e-6)
    rank(torch.zeros(3, *SHAPE), range(4, 7))
    assert torch.equal(rank.ratio.shown[2][0], first)


def test_labels_reach_sampler_and_ratio_network() -> None:
    rank, labels = ranker(), torch.tensor([2, 0, 1])
    images = best_of(plain, rank, (2,), 7, 0, 3, SHAPE, labels)[2]
    assert (images.mean((1, 2, 3)) / 100).round().tolist() == [2, 0, 1]
    assert all(torch.equal(told, labels) for _, _, told in rank.ratio.shown)


def test_a_logit_that_is_not_finite_names_the_image() -> None:
    rank = Ranker(lambda x, sigma, labels=None: x.mean((1, 2, 3)) / 0, BestOfConfig(), 0)
    with pytest.raises(FeatlensError, match="logit of image 9 is not finite"):
        rank(torch.zeros(2, *SHAPE), [9, 10])


@pytest.mark.parametrize("ks", [(), (0,), (2, -1)])
def test_impossible_numbers_of_candidates(ks: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="numbers of candidates from 1"):
        best_of(plain, ranker(), ks, 0, 0, 2, SHAPE)


def test_choosing_by_the_exact_ratio_moves_a_student_towards_the_data() -> None:
    """Data N(1, 1), student N(0, 1): the log ratio x - 1/2 grows with x, so candidates with large x are kept.

    The mean of the larger of two standard normals is 1 / sqrt(pi) (times 1 / sqrt(d) for means of d pixels).
    """
    found = best_of(plain, ranker(), (2,), 0, 0, 4000, (1, 1, 1))[2]
    assert float(found.mean()) == pytest.approx(1 / np.sqrt(np.pi), abs=4 / np.sqrt(4000))


# --- generators ---------------------------------------------------------------------------------------------


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    denoiser = build_denoiser(UNetConfig(channels=8, labels=3), 0.5, seed=0)
    path = tmp_path / "ema.safetensors"
    save_denoiser(path, denoiser, sigma_init=2.5)
    return path


def test_a_snapshot_is_sampled_with_heun_or_in_one_step(snapshot: Path) -> None:
    denoiser = build_denoiser(UNetConfig(channels=8, labels=3), 0.5, seed=0).eval()
    z, labels = latents(3, 0, 5, (1, 8, 8)), draw_labels(3, 0, 5, 3)
    heun, one = open_model(snapshot, 3), open_model(snapshot.parent, 1)
    assert (heun.evaluations, heun.steps, one.evaluations, one.sigma_init) == (5, 3, 1, 2.5)
    assert heun.weights == one.weights and one.shape == (1, 8, 8) and one.study is None
    with torch.no_grad():
        wanted = heun_sample(denoiser, z, labels, steps=3), OneStepGenerator(denoiser, 2.5)(z, labels)
    for generator, images in zip((heun, one), wanted, strict=True):
        ((first, found),) = generator.batches(5, 3)
        assert first == 0
        torch.testing.assert_close(found[1], images)


def test_batches_change_nothing(snapshot: Path) -> None:
    generator = open_model(snapshot, 1)
    parts = [found[1] for _, found in generator.batches(7, 0, batch=3)]
    assert [len(part) for part in parts] == [3, 3, 1]
    torch.testing.assert_close(torch.cat(parts), next(generator.batches(7, 0))[1][1])


def test_one_class_alone(snapshot: Path) -> None:
    generator = open_model(snapshot, 1)
    assert generator.labels(0, 0, 4).tolist() == draw_labels(0, 0, 4, 3).tolist()
    assert generator.drawing(2).labels(0, 0, 4).tolist() == [2, 2, 2, 2]
    for label in (3, -1):
        with pytest.raises(UsageError, match="knows the labels 0 to 2"):
            generator.drawing(label)


def test_a_student_without_a_ratio_network_is_one_clear_line(snapshot: Path) -> None:
    with pytest.raises(FeatlensError, match="holds no ratio network"):
        open_model(snapshot).choosing(BestOfConfig(), 0)
    with pytest.raises(UsageError, match="needs a ratio network"):
        next(open_model(snapshot, 1).batches(2, 0, (2,)))


MODEL = """
import torch
from featlens.denoiser import EDMDenoiser
class Zero(torch.nn.Module):
    def forward(self, x, c_noise, labels=None):
        return 0 * x
def build(channels=1, flat=False):
    return EDMDenoiser(Zero(), (64,) if flat else (channels, 8, 8))
"""


@pytest.fixture
def foreign(tmp_path: Path) -> str:
    path = tmp_path / "zero_model.py"
    path.write_text(MODEL)
    return f"python:{path}:build"


def test_any_model_that_featlens_loads(foreign: str) -> None:
    generator = open_model(foreign, 1, sigma_init=1.5)
    images = next(generator.batches(4, 0))[1][1]
    # c_skip sigma z: what EDM's preconditioning leaves of a network whose answer is 0.
    torch.testing.assert_close(images, latents(0, 0, 4, (1, 8, 8)) * 1.5 * 0.25 / (1.5**2 + 0.25))
    assert open_model(foreign, 4).evaluations == 7
    with pytest.raises(UsageError, match="give --sigma-init"):
        open_model(foreign, 1)
    with pytest.raises(UsageError, match="only runs of featlens have a ratio network"):
        generator.choosing(BestOfConfig(), 0)
    with pytest.raises(UsageError, match="none, it is unconditional"):
        generator.drawing(0)
    with pytest.raises(UsageError, match=r"samples of shape \(64,\)"):
        open_model(f"{foreign}:flat=true")


# --- evaluations --------------------------------------------------------------------------------------------


def pixels(x: Tensor) -> Tensor:
    return x.flatten(1)[:, ::9]


def evaluation(reference: Images | None = None, **options: Any) -> Evaluation:
    held = images_of(SampleSet.load("digits", split="held-out"), "digits", 60)
    extractor = Extractor("pixels", "p", pixels, Inputs())
    return Evaluation(extractor, reference or held, MetricConfig(resamples=3), **options)


def test_a_card_for_each_number_of_candidates(foreign: str) -> None:
    generator = replace(open_model(foreign, 1, sigma_init=1.5), ranker=ranker())
    told: list[str] = []
    made = evaluation(batch=11, progress=lambda what, done, total: told.append(what))
    one, two = made.generator(generator, 30, seed=4, ks=(1, 2))
    assert (one.best_of, two.best_of) == (1, 2) and (one.network_evaluations, two.network_evaluations) == (
        1,
        2,
    )
    assert one.best_of_sigmas == () and two.best_of_sigmas == (0.2,)
    assert one.values["frechet"] != two.values["frechet"]
    assert (one.generated, one.reference, one.seed, one.weights) == (30, 60, 4, generator.weights)
    assert set(told) == {"reference", "sample", "errors"}
    (alone,) = evaluation().generator(generator, 30, seed=4, ks=(1,))
    assert alone.values == pytest.approx(one.values)


def test_images_that_are_there_already() -> None:
    given = images_of(SampleSet.load("digits", split="train"), "mine", 40)
    card = evaluation().images(given)
    assert (card.run, card.generated, card.seed, card.steps) == ("mine", 40, None, None)
    assert card.weights == given.digest()
    same = evaluation(given).images(given)
    assert same.values["frechet"] == pytest.approx(0, abs=1e-6) and same.values["coverage"] == 1


def test_images_that_do_not_fit_the_reference_are_refused(foreign: str) -> None:
    colour = open_model(f"{foreign}:channels=3", 2)
    with pytest.raises(UsageError, match=r"shape \(3, 8, 8\), the reference digits has \(1, 8, 8\)"):
        evaluation().generator(colour, 10)
    one = images_of(torch.zeros(1, 1, 8, 8), "one image")
    with pytest.raises(UsageError, match="expected at least 6 images, got 1 of one image"):
        evaluation().images(one)
    with pytest.raises(UsageError, match="got 1 of one image"):
        evaluation(one).generator(open_model(foreign, 2), 10)
    with pytest.raises(UsageError, match="expected images"):
        images_of(torch.zeros(3, 5), "rows")


def test_generated_images_whose_features_are_not_finite_are_named(foreign: str) -> None:
    def broken(x: Tensor) -> Tensor:
        out = pixels(x).clone()
        out[3 % len(out)] = float("nan") if len(x) == 12 else 0
        return out

    made = Evaluation(Extractor("broken", "b", broken, Inputs()), evaluation().reference, batch=12)
    with pytest.raises(FeatlensError, match="features of image 3 of generated by python:"):
        made.generator(open_model(foreign, 2), 24)


def test_digest_of_images_follows_pixels_and_order() -> None:
    x = torch.rand(600, 1, 2, 2)
    assert images_of(x, "a").digest() == images_of(x.clone(), "b").digest()
    assert images_of(x.flip(0), "a").digest() != images_of(x, "a").digest()
    assert images_of(x, "a", 599).digest() == images_of(x[:599], "a").digest()
