"""The study's own classifier: what it learns, its features, and exact resumption."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featlens import SampleSet
from featlens.denoiser import weights_digest
from featlens.errors import FeatlensError, UsageError
from featlens.files import make_folder
from featlens_trainers import StudyConfig, Training, UNetConfig, tasks
from featlens_trainers.classifier import (
    Classifier,
    accuracy_of,
    features_of,
    load_classifier,
    save_classifier,
    start_classifier,
    train_classifier,
)
from featlens_trainers.initialisation import seeded
from featlens_trainers.runs import Run, read_run
from featlens_trainers.settings import ClassifierConfig
from featlens_trainers.training import TrainingError

CONFIG = ClassifierConfig(images=96, batch=16, features=8)


def made(seed: int = 0, features: int = 8) -> Classifier:
    with seeded(seed):
        return Classifier(1, 8, 10, features)


def digits(split: str = "train") -> tuple[Tensor, Tensor]:
    samples = SampleSet.load(split=split)
    return torch.from_numpy(samples.images), torch.from_numpy(samples.labels)


# --- network and features -----------------------------------------------------------------------------------


@pytest.mark.parametrize("resolution", [4, 8, 9, 16])
def test_any_resolution_fits(resolution: int) -> None:
    classifier = Classifier(3, resolution, 7, 12)
    x = torch.randn(2, 3, resolution, resolution)
    assert classifier(x).shape == (2, 7)
    assert classifier.features(x).shape == (2, 12)


def test_calibration_gives_the_images_mean_square_one_and_leaves_the_logits_alone() -> None:
    classifier, x = made(), digits()[0][:100]
    with torch.no_grad():
        before = classifier(x)
        classifier.calibrate(x)
        assert float(classifier.features(x).square().mean()) == pytest.approx(1, rel=1e-5)
        assert torch.equal(classifier(x), before)
        torch.testing.assert_close(classifier.head(classifier.features(x) / classifier.feature_scale), before)


def test_features_do_not_depend_on_the_batch() -> None:
    classifier, x = made(), digits()[0][:11]
    whole = features_of(classifier.train(), x)
    assert whole.shape == (11, 8)
    assert whole.dtype == np.float64
    assert not classifier.training
    for batch in (1, 4, 11):
        np.testing.assert_allclose(features_of(classifier, x, batch), whole, rtol=1e-5, atol=1e-6)


def test_the_feature_scale_is_stored_with_the_weights() -> None:
    classifier, other = made(), made(1)
    classifier.calibrate(digits()[0][:50])
    other.load_state_dict(classifier.state_dict())
    x = digits()[0][50:60]
    assert np.array_equal(features_of(other, x), features_of(classifier, x))


# --- training -----------------------------------------------------------------------------------------------


def test_it_learns_real_digits() -> None:
    training = start_classifier(made(features=32))
    images, labels = digits()
    config = ClassifierConfig(images=6_400, batch=32)
    losses = [step.metrics["loss"] for step in train_classifier(training, images, config, 0, labels)]
    held, truth = digits("held-out")
    classifier = training.networks["net"].eval()
    with torch.no_grad():
        accuracy = float((classifier(held).argmax(1) == truth).float().mean())
    assert accuracy > 0.75
    assert losses[-1] < 0.5 * losses[0]


def test_training_sees_shifted_and_slightly_noisy_images() -> None:
    seen: list[Tensor] = []
    training = start_classifier(made())
    training.networks["net"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    one = torch.full((1, 1, 8, 8), -1.0)
    one[0, 0, 4, 4] = 1.0
    labels = torch.zeros(1, dtype=torch.long)
    list(train_classifier(training, one, ClassifierConfig(160, 2), 0, labels))
    peaks = {tuple(divmod(int(x.flatten().argmax()), 8)) for batch in seen for x in batch}
    assert peaks == {(4 + down, 4 + right) for down in (-1, 0, 1) for right in (-1, 0, 1)}
    background = torch.cat([x.flatten().sort().values[:-1] for batch in seen for x in batch])
    assert float(background.mean()) == pytest.approx(-1, abs=0.01)
    assert float(background.std()) == pytest.approx(0.1, abs=0.01)


def test_labels_stay_with_their_images() -> None:
    rows: list[Tensor] = []

    class Coded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            rows.append(x.detach().amax((1, 2, 3)).round().long())
            return nn.functional.one_hot(rows[-1], 10) * 100.0 + self.weight

    training = Training({"net": Coded()}, {})
    training.optimizers["net"] = torch.optim.SGD(training.networks["net"].parameters(), lr=0.0)
    labels = torch.arange(10)
    coded = labels.float()[:, None, None, None].expand(10, 1, 3, 3).contiguous()
    steps = list(train_classifier(training, coded, ClassifierConfig(images=40, batch=5), 0, labels))
    assert all(step.metrics["loss"] < 1e-3 for step in steps)
    assert sorted(torch.cat(rows).tolist()) == sorted(list(range(10)) * 4)


def test_images_that_are_not_finite_are_named() -> None:
    images, labels = digits()
    images[5] = float("inf")
    with pytest.raises(UsageError, match="image 5 holds NaN or infinite pixels"):
        list(train_classifier(start_classifier(made()), images[:16], CONFIG, 0, labels[:16]))


def test_a_loss_that_is_not_finite_stops_training_with_the_place() -> None:
    images, labels = digits()
    training = start_classifier(made())
    with torch.no_grad():
        training.networks["net"].head.bias[0] = float("inf")
    with pytest.raises(TrainingError, match="the classifier's loss became nan after 0 images"):
        list(train_classifier(training, images, CONFIG, 0, labels))


class Coloured:
    """Data that is read batch by batch: three classes of colour images, four rows at most at a time."""

    name, digest, shape, num_labels = "coloured", "", (3, 6, 6), 3

    def __init__(self, count: int = 24) -> None:
        self.labels = torch.arange(count) % 3
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        self.asked.append(len(rows))
        images = torch.full((len(rows), *self.shape), -0.5)
        images[torch.arange(len(rows)), self.labels[rows]] = 0.5
        return images, self.labels[rows]


def test_any_labelled_data_is_read_in_batches() -> None:
    data = Coloured()
    with seeded(0):
        classifier = Classifier(3, 6, 3, 8)
    training = start_classifier(classifier)
    steps = list(train_classifier(training, data, ClassifierConfig(images=480, batch=4), 0))
    assert set(data.asked) == {4} and len(steps) == 120
    assert accuracy_of(classifier, data, batch=5) == 1.0
    images = data.batch(torch.arange(len(data)))[0]
    classifier.calibrate(data, batch=7)
    whole = classifier.hidden(images).square().mean().rsqrt()
    assert float(classifier.feature_scale) == pytest.approx(float(whole.detach()), rel=1e-6)
    with seeded(0):
        by_tensor = start_classifier(Classifier(3, 6, 3, 8))
    list(train_classifier(by_tensor, images, ClassifierConfig(images=480, batch=4), 0, data.labels))
    assert torch.equal(by_tensor.networks["net"].head.weight, classifier.head.weight)


def test_data_that_does_not_fit_is_refused() -> None:
    images, labels = digits()

    def fit(classifier: Classifier, *data: Tensor) -> None:
        list(train_classifier(start_classifier(classifier), data[0], CONFIG, 0, *data[1:]))

    with pytest.raises(UsageError, match="needs labelled images"):
        fit(made(), images)
    with pytest.raises(UsageError, match=r"takes images of shape \(3, 8, 8\), the data has \(1, 8, 8\)"):
        fit(Classifier(3, 8, 10, 8), images, labels)
    with pytest.raises(UsageError, match="tells 4 classes apart, the data has 10"):
        fit(Classifier(1, 8, 4, 8), images, labels)


def test_a_classifier_is_stored_with_its_shape(tmp_path: Path) -> None:
    classifier = Classifier(3, 6, 3, 8)
    save_classifier(make_folder(tmp_path / "classifier") / "classifier.safetensors", classifier, data="mine")
    again, about = load_classifier(tmp_path)
    assert again.shape == classifier.shape and about["data"] == "mine"
    assert weights_digest(again) == weights_digest(classifier)


def test_classifier_resumes_bit_for_bit(tmp_path: Path) -> None:
    images, labels = digits()
    whole = start_classifier(made())
    list(train_classifier(whole, images, CONFIG, 0, labels))
    with Run(tmp_path, "test", {}) as run:
        training = start_classifier(made())
        steps = train_classifier(training, images, CONFIG, 0, labels)
        for step in run.drive(training, steps, CONFIG.images, save_every=10**9):
            if step.images == 32:
                run.save(training)
                break
    again = start_classifier(made(5))
    with Run(tmp_path, "test", {}) as run:
        assert run.restore(again) == []
        list(run.drive(again, train_classifier(again, images, CONFIG, 0, labels), CONFIG.images))
    first, second = whole.tensors(), again.tensors()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert again.images == CONFIG.images


# --- the run ------------------------------------------------------------------------------------------------


def study() -> StudyConfig:
    return StudyConfig(network=UNetConfig(channels=8), classifier=ClassifierConfig(images=640, batch=64))


def test_the_run_trains_on_training_images_and_stores_a_calibrated_classifier(tmp_path: Path) -> None:
    config = study()
    tasks.run_classifier(tmp_path, config, "cpu")
    images, labels = digits()
    with seeded(config.seed, "classifier"):
        own = Classifier(1, 8, 10, config.classifier.features)
    list(train_classifier(start_classifier(own), images, config.classifier, config.seed, labels))
    own.calibrate(images)
    classifier, about = tasks.load_classifier(tmp_path, "cpu")
    assert about["data"] == "digits"
    assert weights_digest(classifier) == weights_digest(own)
    assert np.square(features_of(classifier, images)).mean() == pytest.approx(1, rel=1e-4)
    record = read_run(tmp_path / "classifier")
    assert record["status"] == "done"
    held_images, truth = digits("held-out")
    with torch.no_grad():
        accuracy = float((classifier(held_images).argmax(1) == truth).float().mean())
    assert record["info"]["held_out_accuracy"] == pytest.approx(accuracy)
    reference = tasks.reference_features(partial(features_of, classifier), study())
    np.testing.assert_allclose(reference, features_of(classifier, held_images), rtol=1e-6)


def test_a_folder_without_a_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FeatlensError, match="holds no classifier to measure quality with"):
        tasks.load_classifier(tmp_path, "cpu")
