"""The augmentation pipe against a pixel-by-pixel reference, closed forms, and what it tells the network."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from featlens.errors import UsageError
from featlens_trainers.augment import augment, augmentation_labels, draw_augmentation, warp

A = 2**0.2


def numbers(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 4, height: int = 8, width: int = 8, channels: int = 2) -> Tensor:
    return torch.rand(count, channels, height, width, generator=numbers(5)) * 2 - 1


def only(**values: float) -> Tensor:
    """Parameters of one image, zero but for those given, such as ``a3=0.5``."""
    out = torch.zeros(1, 8)
    for name, value in values.items():
        out[0, int(name[1])] = value
    return out


# --- reference: the table of the paper as matrices, and resampling as sums over pixels ----------------------


def keys(x: float) -> float:
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def mirrored(index: int, size: int) -> int:
    index %= 2 * size
    return 2 * size - 1 - index if index >= size else index


def rotate(angle: float) -> NDArray[np.float64]:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def scale(x: float, y: float) -> NDArray[np.float64]:
    return np.diag([x, y, 1.0])


def matrix(a: list[float], height: int, width: int) -> NDArray[np.float64]:
    """Where a place of the image goes, (x, y, 1) in pixels from the centre, y down."""
    shift = np.eye(3)
    shift[:2, 2] = a[6] * width / 8, a[7] * height / 8
    stretch = rotate(a[4]) @ scale(A ** a[5], A ** -a[5]) @ rotate(-a[4])
    flips = scale(1, 1 - 2 * a[1]) @ scale(1 - 2 * a[0], 1)
    return shift @ stretch @ rotate(-a[3]) @ scale(A ** a[2], A ** a[2]) @ flips


def finer(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Twice as many pixels each way, by Keys' cubic interpolation of the mirrored image."""
    for axis in (0, 1):
        image = np.moveaxis(image, axis, 0)
        size = len(image)
        rows = []
        for fine in range(2 * size):
            at = (fine + 0.5) / 2 - 0.5
            near = range(math.floor(at) - 1, math.floor(at) + 3)
            rows.append(sum(keys(at - i) * image[mirrored(i, size)] for i in near))
        image = np.moveaxis(np.stack(rows), 0, axis)
    return image


def reference(image: NDArray[np.float64], a: list[float]) -> NDArray[np.float64]:
    height, width = image.shape
    back = np.linalg.inv(matrix(a, height, width))
    fine = finer(image)

    def value(x: float, y: float) -> float:
        """Bilinear in the finer image, at a place in pixels of the image from its centre."""
        column, row = 2 * (x + width / 2) - 0.5, 2 * (y + height / 2) - 0.5
        left, top = math.floor(column), math.floor(row)
        total = 0.0
        for i in (top, top + 1):
            for j in (left, left + 1):
                weight = (1 - abs(row - i)) * (1 - abs(column - j))
                total += weight * fine[mirrored(i, 2 * height), mirrored(j, 2 * width)]
        return total

    out = np.zeros((height, width))
    taps = [(k + 0.5) / 2 for k in range(-4, 4)]
    for i in range(height):
        for j in range(width):
            for dy in taps:
                for dx in taps:
                    place = np.array([j + 0.5 + dx - width / 2, i + 0.5 + dy - height / 2, 1])
                    x, y, _ = back @ place
                    out[i, j] += keys(dy) * keys(dx) / 4 * value(x, y)
    return out


CASES = {
    "mirror x": only(a0=1),
    "mirror y": only(a1=1),
    "larger": only(a2=1.3),
    "smaller": only(a2=-1.7),
    "rotation": only(a3=0.7),
    "stretch": only(a4=0.4, a5=1.1),
    "shift": only(a6=0.9, a7=-1.4),
    "far shift": only(a6=7.0),
    "all": torch.tensor([[1, 1, -0.6, 2.1, -1.0, 0.8, 0.5, 0.7]]),
}


@pytest.mark.parametrize("name", CASES)
def test_each_transformation_alone_and_all_together_are_the_papers(name: str) -> None:
    image = pictures(1, 5, 7, 1)
    expected = reference(image[0, 0].double().numpy(), CASES[name][0].tolist())
    if name.startswith("mirror"):
        # The reference resamples; a mirror image needs none and is exact.
        expected = image[0, 0].flip(1 if name == "mirror x" else 0).numpy()
    np.testing.assert_allclose(warp(image, CASES[name])[0, 0], expected, atol=2e-5)


def test_mirrored_images_are_not_resampled() -> None:
    images = pictures(3)
    parameters = torch.cat([only(a0=1), only(a1=1), only(a0=1, a1=1)])
    out = warp(images, parameters)
    for one, image, dimensions in zip(out, images, ([-1], [-2], [-1, -2]), strict=True):
        assert torch.equal(one, image.flip(dimensions))


def test_a_linear_image_stays_linear_under_every_map() -> None:
    side = 32
    at = (torch.arange(side) + 0.5) - side / 2
    image = (0.02 * at[None, :] - 0.03 * at[:, None] + 0.1)[None, None].double()
    parameters = torch.tensor([[0, 1, 0.8, 0.6, 1.2, -0.7, 0.2, -0.1]])
    back = np.linalg.inv(matrix(parameters[0].tolist(), side, side))
    y, x = np.mgrid[0:side, 0:side] + 0.5 - side / 2
    there = np.einsum("ij,jhw->ihw", back, np.stack([x, y, np.ones_like(x)]))
    expected = 0.02 * there[0] - 0.03 * there[1] + 0.1
    # Far enough from the border that no filter meets the mirrored plane.
    inside = (np.abs(there[:2]) < side / 2 - 3).all(0)
    assert inside.sum() > 300
    np.testing.assert_allclose(warp(image, parameters)[0, 0].numpy()[inside], expected[inside], atol=1e-5)


def test_positive_a3_turns_counterclockwise_to_the_eye() -> None:
    image = torch.zeros(1, 1, 16, 16)
    image[:, :, 6:10, 12:15] = 1.0  # on the right
    out = warp(image, only(a3=math.pi / 2))
    assert float(out[0, 0, 1:4, 6:10].mean()) > 0.9  # at the top
    torch.testing.assert_close(
        out, warp(torch.rot90(image, 1, (2, 3)), only(a3=2 * math.pi)), atol=1e-5, rtol=0
    )


def test_shrinking_does_not_alias() -> None:
    stripes = torch.tensor([-1.0, 1.0]).repeat(16).expand(1, 1, 32, 32).contiguous()
    # Half the size, two stripes a pixel: every second pixel is of one colour, their mean is 0.
    small = warp(stripes, only(a2=-5.0))[:, :, :, 11:21]  # away from the image's mirrored border
    assert float(small.abs().max()) < 1e-3
    assert float(stripes[:, :, :, ::2].abs().min()) == 1.0


def test_a_constant_image_stays_constant() -> None:
    parameters = draw_augmentation(50, 1.0, numbers())
    out = warp(torch.full((50, 1, 8, 8), 0.37), parameters)
    torch.testing.assert_close(out, torch.full_like(out, 0.37), atol=1e-5, rtol=0)


# --- what is drawn and told ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (5, 9), (2, 2)])
def test_probability_zero_changes_no_bit_and_tells_nothing(size: tuple[int, int]) -> None:
    images = pictures(6, *size)
    out, labels = augment(images, 0.0, numbers())
    assert torch.equal(out, images)
    assert labels.shape == (6, 9)
    assert not labels.any()


def test_labels_are_those_of_the_table() -> None:
    a = torch.tensor([[1, 0, 0.5, 0.3, -0.9, 1.5, 0.2, -0.4], [0, 1, -2, -3, 2, -1, 0, 3]])
    expected = [
        [*p[:3], math.cos(p[3]) - 1, math.sin(p[3]), p[5] * math.cos(p[4]), p[5] * math.sin(p[4]), *p[6:]]
        for p in a.tolist()
    ]
    torch.testing.assert_close(augmentation_labels(a), torch.tensor(expected))


def test_images_that_were_left_alone_have_zero_labels_and_others_do_not() -> None:
    images = pictures(400)
    out, labels = augment(images, 0.12, numbers())
    same = (out == images).flatten(1).all(1)
    assert torch.equal(same, ~labels.any(1))
    # Mirrors that are drawn leave half of the images as they are.
    untouched = (1 - 0.12 / 2) ** 2 * (1 - 0.12) ** 4
    assert float(same.float().mean()) == pytest.approx(untouched, abs=0.08)


def test_each_transformation_has_the_asked_probability_on_its_own() -> None:
    a = draw_augmentation(20_000, 0.12, numbers())
    active = a.ne(0).float().mean(0)
    assert active.tolist() == pytest.approx([0.06, 0.06, *[0.12] * 6], abs=0.01)
    assert torch.equal(a[:, 4] != 0, a[:, 5] != 0)
    assert torch.equal(a[:, 6] != 0, a[:, 7] != 0)
    parts = (a[:, [0, 1, 2, 3, 5, 6]] != 0).float()
    correlation = torch.corrcoef(parts.T) - torch.eye(6)
    assert float(correlation.abs().max()) < 0.04


def test_parameters_have_the_distributions_of_the_table() -> None:
    a = draw_augmentation(20_000, 1.0, numbers())
    assert a[:, :2].mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.02)
    for column in (2, 5, 6, 7):
        assert float(a[:, column].mean()) == pytest.approx(0, abs=0.03)
        assert float(a[:, column].std()) == pytest.approx(1, abs=0.03)
    for column in (3, 4):
        assert float(a[:, column].abs().max()) <= math.pi
        assert float(a[:, column].std()) == pytest.approx(math.pi / math.sqrt(3), abs=0.03)


def test_the_mirror_can_have_a_probability_of_its_own() -> None:
    a = draw_augmentation(4_000, 0.0, numbers(), flip=1.0)
    assert float(a[:, 0].mean()) == pytest.approx(0.5, abs=0.04)
    assert not a[:, 1:].any()


@pytest.mark.parametrize("size", [1, 3, 16])
def test_an_image_is_augmented_alike_whatever_its_part_of_the_batch(size: int) -> None:
    images = pictures(16, 8, 8, 3)
    parameters = draw_augmentation(16, 0.7, numbers())
    whole = warp(images, parameters)
    parts = [warp(images[i : i + size], parameters[i : i + size]) for i in range(0, 16, size)]
    assert torch.equal(torch.cat(parts), whole)
    again, labels = augment(images, 0.7, numbers())
    assert torch.equal(again, whole)
    assert torch.equal(labels, augmentation_labels(parameters))


def test_images_given_are_not_changed() -> None:
    images = pictures()
    before = images.clone()
    augment(images, 1.0, numbers())
    assert torch.equal(images, before)


@pytest.mark.parametrize("wrong", [{"probability": 1.2}, {"probability": 0.1, "flip": -0.5}])
def test_what_is_no_probability_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="must be from 0 to 1, got"):
        augment(pictures(), numbers=numbers(), **wrong)
