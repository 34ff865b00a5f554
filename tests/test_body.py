"""The classifier's body: what it is trained on, what of it becomes a source, and exact resume."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from featlens.errors import UsageError
from featlens_trainers import ADMConfig, DiTConfig, InitSpec, UNetConfig, build_denoiser, initialise_student
from featlens_trainers.body import BodyClassifier, start_body, train_body
from featlens_trainers.settings import BodyConfig
from featlens_trainers.training import TrainingError

UNET = UNetConfig(channels=8, resolution=8, channel_mult=(1, 1), attention_resolutions=(), dropout=0.1)
CONFIGS = {
    "unet": UNET,
    "adm": ADMConfig(
        resolution=8, in_channels=1, out_channels=1, channels=8, channel_mult=(1, 1), blocks=1, labels=0
    ),
    "dit": DiTConfig(width=16, depth=2, heads=2),
    "conditional": UNetConfig(channels=8, labels=3, attention_resolutions=()),
}
CONFIG = BodyConfig(images=32 * 14, batch=32, lr=1e-2, ramp_images=64, ema_half_life=100)


def halves(count: int = 96) -> tuple[Tensor, Tensor]:
    """Images whose class is which half is bright."""
    numbers = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    images = 0.3 * torch.randn(count, 1, 8, 8, generator=numbers)
    images[labels == 0, :, :4] += 0.7
    images[labels == 1, :, 4:] += 0.7
    return images, labels


def drive(training, config: BodyConfig = CONFIG, seed: int = 0, stop: int | None = None) -> list[float]:
    images, labels = halves()
    losses = []
    for step in train_body(training, images, config, seed, labels):
        losses.append(step.metrics["loss"])
        if step.images == stop:
            break
    return losses


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_a_body_learns_the_labels_and_then_tells_new_images_apart(kind: str) -> None:
    training = start_body(build_denoiser(CONFIGS[kind], 0.5, 0), 2, CONFIG)
    losses = drive(training)
    assert len(losses) == 14 and training.images == CONFIG.images
    assert losses[-1] < 0.5 * losses[0]
    images, labels = halves(40)
    with torch.no_grad():
        logits = training.networks["net"].eval()(images.flip(2))
    # Flipped upside down the halves change places.
    assert float((logits.argmax(1) != labels).float().mean()) > 0.9


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_it_reads_is_the_input_of_the_output_layers(kind: str) -> None:
    denoiser = build_denoiser(CONFIGS[kind], 0.5, 0).eval()
    body = BodyClassifier(denoiser, classes=3, sigma=0.1)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    network = denoiser.network
    scaled = x / (0.1**2 + 0.5**2) ** 0.5
    seen: list[Tensor] = []
    last = {"adm": lambda: network.out_norm, "dit": lambda: network.dec["out"]}
    layer = last.get(kind, lambda: network.dec["8x8_aux_norm"])()
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    hot = (torch.zeros(2, 3),) if kind == "conditional" else ()
    with torch.no_grad():
        network(scaled, torch.full((2,), 0.1).log() / 4, *hot)
        handle.remove()
        hidden = seen[0].transpose(1, 2)[..., None] if kind == "dit" else seen[0]
        pooled = torch.nn.functional.silu(body.head_norm(hidden)).mean((2, 3))
        wanted = pooled @ body.head.weight.T + body.head.bias
        assert torch.allclose(body(x), wanted, atol=1e-5)
    assert not any(module._forward_pre_hooks for module in body.modules())


def test_every_layer_of_the_body_is_trained_and_the_output_layers_are_not() -> None:
    start = build_denoiser(UNET, 0.5, 0).state_dict()
    training = start_body(build_denoiser(UNET, 0.5, 0), 2, CONFIG)
    drive(training, stop=96)
    for name, value in training.networks["net"].denoiser.state_dict().items():
        assert torch.equal(value, start[name]) == ("_aux_" in name), name


def test_its_average_is_the_source_of_the_initialisation() -> None:
    training = start_body(build_denoiser(UNET, 0.5, 0), 2, CONFIG)
    drive(training, stop=64)
    source = training.networks["ema"].denoiser.state_dict()
    student = build_denoiser(UNET, 0.5, 1)
    manifest = initialise_student(student, InitSpec("classifier_body"), {"classifier_body": source}, 1)
    assert manifest.counts()["random"] == 4
    assert torch.equal(
        student.state_dict()["network.enc.8x8_conv.weight"], source["network.enc.8x8_conv.weight"]
    )


@pytest.mark.parametrize("noised", [False, True])
def test_a_run_in_two_pieces_is_the_run_in_one(noised: bool) -> None:
    config = BodyConfig(images=32 * 5, batch=32, noised=noised, sigma=0.2)
    whole = start_body(build_denoiser(UNET, 0.5, 0), 2, config)
    losses = drive(whole, config)
    first = start_body(build_denoiser(UNET, 0.5, 0), 2, config)
    before = drive(first, config, stop=64)
    held = {name: value.clone() for name, value in first.tensors().items()}
    second = start_body(build_denoiser(UNET, 0.5, 9), 2, config)
    second.load_tensors(held, 64)
    assert before + drive(second, config) == losses
    there = second.tensors()
    assert all(torch.equal(value, there[name]) for name, value in whole.tensors().items())
    other = start_body(build_denoiser(UNET, 0.5, 0), 2, config)
    assert drive(other, config, seed=1) != losses


def test_noise_changes_what_is_seen_and_clean_images_draw_none() -> None:
    def first_loss(noised: bool) -> float:
        config = BodyConfig(images=32, batch=32, noised=noised, sigma=0.5)
        return drive(start_body(build_denoiser(UNET, 0.5, 0), 2, config), config)[0]

    assert first_loss(True) != first_loss(False) == first_loss(False)


def test_what_does_not_fit_is_refused() -> None:
    images, labels = halves(8)

    def run(shape=UNET, classes: int = 2, x: Tensor = images, y: Tensor | None = labels) -> None:
        config = BodyConfig(images=8, batch=8)
        next(train_body(start_body(build_denoiser(shape, 0.5, 0), classes, config), x, config, 0, y))

    with pytest.raises(UsageError, match=r"at least 2 classes.*got 1"):
        run(classes=1)
    with pytest.raises(UsageError, match="trained on labels, and the data has none"):
        run(y=None)
    with pytest.raises(UsageError, match="data has 3 classes and the classifier's body 2"):
        run(y=labels + 1)
    with pytest.raises(UsageError, match=r"images of shape \(1, 8, 8\), the data has \(1, 4, 4\)"):
        run(x=images[:, :, :4, :4])
    with pytest.raises(UsageError, match="image 0 holds NaN"):
        run(x=images * float("nan"))
    training = start_body(build_denoiser(UNET, 0.5, 0), 2, CONFIG)
    with torch.no_grad():
        training.networks["net"].head.bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match="the loss of the classifier's body became nan"):
        drive(training)
    for name in ("images", "lr", "sigma"):
        with pytest.raises(UsageError, match=name):
            BodyConfig(**{name: 0})
    with pytest.raises(UsageError, match="ramp_images must be at least 0"):
        BodyConfig(ramp_images=-1)
