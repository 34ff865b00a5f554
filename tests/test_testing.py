"""The public conformance test of denoisers: right ones pass, each kind of wrong one is told what is wrong."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from featlens import Denoiser
from featlens.errors import FeatlensError, UsageError
from featlens.testing import check_denoiser


class Own:
    """A host project's denoiser; it knows nothing of featlens."""

    sample_shape = (2, 4, 4)
    num_labels = 0
    sigma_data = 0.5

    def __init__(self, call=None, **attributes):
        self.network = nn.Conv2d(2, 2, 1)
        self.call = call or (lambda own, x, sigma, labels: own.network(x))
        for name, value in attributes.items():
            setattr(self, name, value)

    def __call__(self, x, sigma, labels=None):
        return self.call(self, x, sigma, labels)


class OwnModule(nn.Module):
    """The same as a module, with a part outside its network."""

    sample_shape = (2, 4, 4)
    num_labels = 0
    sigma_data = 0.5

    def __init__(self):
        super().__init__()
        self.network = nn.Conv2d(2, 2, 1)
        self.scale = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, sigma, labels=None):
        return self.scale(self.network(x)) / (1 + sigma.reshape(-1, 1, 1, 1))


def conditional(own, x, sigma, labels):
    """Uses labels and sigmas row by row; without labels there is class 0."""
    told = torch.zeros(len(x)) if labels is None else labels
    return x * (told + sigma).reshape(-1, 1, 1, 1)


def test_any_class_of_the_right_shape_passes():
    own = Own()
    assert isinstance(own, Denoiser)
    assert check_denoiser(own) is None


@pytest.mark.parametrize("num_labels", [0, 3])
def test_our_own_denoiser_passes_and_keeps_its_modes(make_denoiser, num_labels):
    denoiser = make_denoiser(num_labels)
    denoiser.network.mid[0].eval()
    modes = [module.training for module in denoiser.modules()]
    state = torch.get_rng_state()
    check_denoiser(denoiser, sigma=2.0)
    assert [module.training for module in denoiser.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_parts_beside_the_network_are_put_into_evaluation_mode_too():
    model = OwnModule()
    check_denoiser(model)
    assert model.training and model.scale.training


def test_rows_differ_in_sigma_and_label_from_the_first_class_to_the_last():
    seen = []

    def spy(own, x, sigma, labels):
        seen.append((sigma.tolist(), None if labels is None else labels.tolist(), x.dtype))
        return conditional(own, x, sigma, labels)

    check_denoiser(Own(spy, num_labels=5), sigma=0.5, batch=3)
    assert [0.5, 0.75, 1.0] in [sigma for sigma, _, _ in seen]
    assert [4, 2, 0] in [labels for _, labels, _ in seen]
    assert seen[-1][1] is None
    assert {dtype for _, _, dtype in seen} == {torch.float32}


@pytest.mark.parametrize("error", [ValueError, UsageError, FeatlensError])
def test_a_conditional_denoiser_may_say_that_it_needs_labels(error):
    def needs(own, x, sigma, labels):
        if labels is None:
            raise error("give labels")
        return conditional(own, x, sigma, labels)

    check_denoiser(Own(needs, num_labels=3))


@pytest.mark.parametrize("missing", ["sample_shape", "num_labels", "sigma_data", "network"])
def test_a_missing_attribute_is_named(missing):
    attributes = {"sample_shape": (1,), "num_labels": 0, "sigma_data": 1.0, "network": nn.Identity()}
    del attributes[missing]
    with pytest.raises(FeatlensError, match=f"SimpleNamespace has no attribute '{missing}'"):
        check_denoiser(SimpleNamespace(**attributes))


def test_what_cannot_be_called_is_named():
    with pytest.raises(FeatlensError, match="SimpleNamespace cannot be called; give it __call__"):
        check_denoiser(
            SimpleNamespace(sample_shape=(1,), num_labels=0, sigma_data=1.0, network=nn.Identity())
        )


def double_in_place(own, x, sigma, labels):
    return x.mul_(2)


def sigma_in_place(own, x, sigma, labels):
    sigma.clamp_(max=0.1)
    return x


def labels_in_place(own, x, sigma, labels):
    if labels is not None:
        labels += 1
    return x


def one_sigma_for_all(own, x, sigma, labels):
    return x * sigma[0]


def one_label_for_all(own, x, sigma, labels):
    return x * (0 if labels is None else labels[0])


def needs_labels_badly(own, x, sigma, labels):
    return x * labels.reshape(-1, 1, 1, 1)


def wrong_without_labels(own, x, sigma, labels):
    return x[:, :1] if labels is None else x


def drops(own, x, sigma, labels):
    keep = torch.rand(x.shape, generator=own.numbers) > 0.5
    return x * keep


def draws(own, x, sigma, labels):
    torch.rand(1)
    return x


def learns(own, x, sigma, labels):
    own.network.weight.data.add_(1e-9).mul_(1.001)
    return x


def trains(own, x, sigma, labels):
    own.network.train()
    return x


@pytest.mark.parametrize(
    ("denoiser", "message"),
    [
        (Own(network="weights"), "network is a str, expected an nn.Module"),
        (
            Own(sample_shape=32),
            r"sample_shape is 32, expected the shape of one sample, such as \(3, 32, 32\)",
        ),
        (Own(sample_shape=(2, 0)), r"sample_shape is \(2, 0\), expected"),
        (Own(num_labels=None), "num_labels is None, expected a number of classes, 0 for"),
        (Own(num_labels=-1), "num_labels is -1, expected a number of classes"),
        (Own(sigma_data=0), "sigma_data is 0, expected the data's standard deviation"),
        (
            Own(lambda own, x, *_: x[:, :1]),
            r"expected an estimate of x0 of shape \(3, 2, 4, 4\), got \(3, 1, 4, 4\); return one tensor",
        ),
        (Own(lambda own, x, *_: (x, x)), r"expected an estimate of x0 of shape \(3, 2, 4, 4\), got tuple"),
        (
            Own(lambda own, x, *_: x.double()),
            r"output of the input's dtype, torch\.float32, got torch\.float64; convert it back",
        ),
        (Own(lambda own, x, *_: x.to("meta")), "output on the input's device, cpu, got meta; move it back"),
        (Own(lambda own, x, *_: x / 0), r"the output at sigma 0\.5 is not finite"),
        (
            Own(lambda own, x, sigma, _: x / (sigma < 0.9).reshape(-1, 1, 1, 1)),
            r"the output at sigma 1 is not finite",
        ),
        (Own(double_in_place), "the call changed its input x in place; clone it first"),
        (Own(sigma_in_place), "the call changed its input sigma in place; clone it first"),
        (Own(labels_in_place, num_labels=3), "the call changed its input labels in place; clone it first"),
        (
            Own(lambda own, x, *_: x - x.mean(dim=0)),
            r"a sample's output depends on its batch \(difference 0\.\d+\), expected the same as alone",
        ),
        (
            Own(one_sigma_for_all),
            r"with a sigma for each row, 0\.5, 0\.75, 1, row 1 differs .* by 0\.\d+; sigma is \(B,\): use",
        ),
        (
            Own(one_label_for_all, num_labels=3),
            r"with a label for each row, 2, 1, 0, row 1 differs .*; labels are \(B,\): use each row's own",
        ),
        (
            Own(needs_labels_badly, num_labels=3),
            r"without labels the call raised AttributeError \(.*\); expected the unconditional estimate, or",
        ),
        (Own(wrong_without_labels, num_labels=3), r"expected an estimate of x0 .* got \(3, 1, 4, 4\)"),
        (
            Own(drops, numbers=torch.Generator().manual_seed(0)),
            r"two equal calls gave different outputs \(difference \d\.\d+\), expected the same .* dropout",
        ),
        (Own(draws), "the call changed PyTorch's random state; in evaluation mode draw nothing, or from"),
        (Own(learns), r"calls changed 'weight' \(1 weights or buffers in all\), expected them as before"),
        (Own(trains), "the call put 'network' into training mode, expected evaluation mode as before"),
    ],
)
def test_wrong_denoisers_are_told_what_is_wrong(denoiser, message):
    state = torch.get_rng_state()
    with pytest.raises(FeatlensError, match=f"^check_denoiser: .*{message}") as caught:
        check_denoiser(denoiser)
    assert "\n" not in str(caught.value)
    assert torch.equal(torch.get_rng_state(), state)


def test_buffers_beside_the_network_are_watched():
    class Counting(OwnModule):
        def forward(self, x, sigma, labels=None):
            self.calls += 1
            return x

    with pytest.raises(FeatlensError, match="calls changed 'calls'"):
        check_denoiser(Counting())


@pytest.mark.parametrize("wrong", [{"sigma": 0.0}, {"sigma": float("nan")}, {"batch": 1}])
def test_a_check_that_checks_nothing_is_refused(wrong):
    with pytest.raises(UsageError, match="expected sigma above 0 and batch above 1"):
        check_denoiser(Own(), **wrong)


def test_half_precision_weights_pass():
    class Half(OwnModule):
        def forward(self, x, sigma, labels=None):
            return self.network(x.bfloat16()).float()

    check_denoiser(Half().bfloat16())


def test_modes_are_restored_when_the_denoiser_fails():
    def fail(own, *_):
        raise RuntimeError("broken model")

    own = Own(fail)
    with pytest.raises(RuntimeError, match="broken model"):
        check_denoiser(own)
    assert own.network.training
