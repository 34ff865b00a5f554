"""The public conformance test of denoisers: right ones pass, each kind of wrong one is told what is wrong."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from featlens import Denoiser
from featlens.errors import FeatlensError
from featlens.testing import check_denoiser


class Own:
    """A host project's denoiser; it knows nothing of featlens."""

    sample_shape = (2, 4, 4)
    num_labels = 0
    sigma_data = 0.5

    def __init__(self, call=None, **attributes):
        self.network = nn.Conv2d(2, 2, 1)
        self.call = call or (lambda x: self.network(x))
        for name, value in attributes.items():
            setattr(self, name, value)

    def __call__(self, x, sigma, labels=None):
        return self.call(x)


def double_in_place(x):
    return x.mul_(2)


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


def test_a_conditional_denoiser_is_given_labels():
    seen = []

    class Conditional(Own):
        num_labels = 3

        def __call__(self, x, sigma, labels=None):
            seen.append((labels.dtype, tuple(labels.shape), sigma.tolist()))
            return x

    check_denoiser(Conditional(), sigma=0.5, batch=2)
    assert seen == [(torch.int64, (2,), [0.5, 0.5]), (torch.int64, (1,), [0.5])]


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


@pytest.mark.parametrize(
    ("denoiser", "message"),
    [
        (Own(network="weights"), "network is a str, expected an nn.Module"),
        (Own(lambda x: x[:, :1]), r"expected an estimate of x0 of shape \(3, 2, 4, 4\), got \(3, 1, 4, 4\)"),
        (Own(lambda x: (x, x)), r"expected an estimate of x0 of shape \(3, 2, 4, 4\), got tuple"),
        (Own(lambda x: x / 0), r"the output at sigma 0\.5 is not finite floating point \(torch\.float32\)"),
        (Own(lambda x: x.long()), r"is not finite floating point \(torch\.int64\)"),
        (Own(double_in_place), "the call changed its input in place; clone it first"),
        (Own(lambda x: x - x.mean(dim=0)), r"a sample's output depends on its batch \(difference 0\.\d+\)"),
    ],
)
def test_wrong_denoisers_are_told_what_is_wrong(denoiser, message):
    with pytest.raises(FeatlensError, match=message) as caught:
        check_denoiser(denoiser)
    assert "\n" not in str(caught.value)


def test_modes_are_restored_when_the_denoiser_fails():
    def fail(x):
        raise RuntimeError("broken model")

    own = Own(fail)
    with pytest.raises(RuntimeError, match="broken model"):
        check_denoiser(own)
    assert own.network.training
