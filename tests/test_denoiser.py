"""EDM's preconditioning against its defining identities and the closed-form denoiser of Gaussian data."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from featlens import denoiser as module_of_denoisers
from featlens.denoiser import (
    Denoiser,
    EDMDenoiser,
    Preconditioning,
    column,
    one_hot,
    tensor_digests,
    weights_digest,
)
from featlens.errors import FeatlensError, UsageError
from featlens.testing import check_denoiser
from featlens_trainers import UNet, UNetConfig, edm_loss


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


sigmas = st.floats(1e-3, 1e3)
spreads = st.floats(0.05, 5.0)


def f64(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


# For data x0 of variance s^2 and x = x0 + sigma eps, everything below is exact, no sampling is needed:
# the network's input is c_in x, its target (x0 - c_skip x) / c_out.


@given(sigmas, spreads)
def test_network_input_has_variance_one(sigma: float, s: float) -> None:
    scale = Preconditioning(s).c_in(f64(sigma))
    assert float(scale**2 * (s**2 + sigma**2)) == pytest.approx(1.0, rel=1e-12)


@given(sigmas, spreads)
def test_network_target_has_variance_one(sigma: float, s: float) -> None:
    scaling = Preconditioning(s)
    skip, out = scaling.c_skip(f64(sigma)), scaling.c_out(f64(sigma))
    variance = ((1 - skip) ** 2 * s**2 + skip**2 * sigma**2) / out**2
    assert float(variance) == pytest.approx(1.0, rel=1e-6)


@given(sigmas, spreads)
def test_skip_weight_amplifies_the_networks_error_least(sigma: float, s: float) -> None:
    skip = float(Preconditioning(s).c_skip(f64(sigma)))
    least = float(Preconditioning(s).c_out(f64(sigma)) ** 2)

    def needed(weight: float) -> float:
        return (1 - weight) ** 2 * s**2 + weight**2 * sigma**2

    assert least <= min(needed(skip * 1.1), needed(skip * 0.9)) * (1 + 1e-9)
    assert needed(skip) == pytest.approx(least, rel=1e-6)


@given(sigmas, spreads)
def test_loss_weight_undoes_the_output_scale(sigma: float, s: float) -> None:
    scaling = Preconditioning(s)
    assert float(scaling.loss_weight(f64(sigma)) * scaling.c_out(f64(sigma)) ** 2) == pytest.approx(
        1, rel=1e-9
    )


@given(sigmas)
def test_noise_level_is_told_as_a_quarter_of_its_logarithm(sigma: float) -> None:
    assert float(Preconditioning().c_noise(f64(sigma))) == pytest.approx(math.log(sigma) / 4, abs=1e-12)


class Constant(nn.Module):
    """Raw network that always puts out the same value."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        return torch.full_like(x, self.value)


def test_a_network_of_zeros_is_the_best_denoiser_of_centred_gaussian_data() -> None:
    x, sigma = torch.randn(4, 1, 2, 2).double(), torch.tensor([0.1, 0.5, 2.0, 30.0]).double()
    denoised = EDMDenoiser(Constant(0.0), (1, 2, 2), sigma_data=0.8)(x, sigma)
    expected = x * (0.64 / (0.64 + sigma**2))[:, None, None, None]
    torch.testing.assert_close(denoised, expected)


class Affine(nn.Module):
    """Denoiser a x + b of one noise level, with EDM's loss weights."""

    def __init__(self, slope: float, offset: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(f64(slope))
        self.offset = nn.Parameter(f64(offset))
        self.scaling = Preconditioning(0.5)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.slope * x + self.offset


def gaussian_problem(mean: float, spread: float, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    """x0 and noise (N, 1, 1, 1) on a product grid of quantiles, so that means are expectations."""
    grid = torch.special.ndtri((torch.arange(400, dtype=torch.float64) + 0.5) / 400)
    grid = grid / grid.square().mean().sqrt()
    x0, noise = torch.meshgrid(mean + spread * grid, grid, indexing="ij")
    x0, noise = (part.reshape(-1, 1, 1, 1) for part in (x0, noise))
    return x0, noise, torch.full((len(x0),), sigma, dtype=torch.float64)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 2.5, 20.0])
def test_edm_loss_is_least_at_the_closed_form_denoiser_of_gaussian_data(sigma: float) -> None:
    mean, spread = 0.3, 0.7
    x0, noise, level = gaussian_problem(mean, spread, sigma)
    slope, offset = spread**2 / (spread**2 + sigma**2), mean * sigma**2 / (spread**2 + sigma**2)
    best = Affine(slope, offset)
    loss = edm_loss(best, x0, level, noise)
    gradients = torch.autograd.grad(loss, list(best.parameters()))
    value = float(loss.detach())
    # Exact value: weight times the posterior variance.
    posterior = (spread * sigma) ** 2 / (spread**2 + sigma**2)
    weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    assert value == pytest.approx(weight * posterior, rel=1e-6)
    assert all(abs(float(g)) < 1e-6 * weight for g in gradients)
    for move in ((0.05, 0), (-0.05, 0), (0, 0.05), (0, -0.05)):
        other = Affine(slope + move[0], offset + move[1])
        assert float(edm_loss(other, x0, level, noise).detach()) > value


def test_a_denoiser_returns_the_image_itself_when_there_is_no_noise() -> None:
    x = torch.randn(3, 1, 8, 8).double()
    denoiser = EDMDenoiser(Constant(2.0), (1, 8, 8))
    gaps = [float((denoiser(x, torch.full((3,), s).double()) - x).abs().max()) for s in (1e-2, 1e-4, 1e-8)]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-7


def test_our_denoiser_satisfies_the_protocol_and_its_public_test() -> None:
    denoiser = EDMDenoiser(UNet(UNetConfig(channels=8, labels=10)), (1, 8, 8), num_labels=10)
    assert isinstance(denoiser, Denoiser)
    check_denoiser(denoiser)


def test_labels_reach_the_network_as_one_hot_rows() -> None:
    seen = []

    class Spy(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
            seen.append(labels)
            return x

    x, sigma = torch.zeros(2, 1, 1, 1), torch.ones(2)
    EDMDenoiser(Spy(), (1, 1, 1), num_labels=3)(x, sigma, torch.tensor([2, 0]))
    EDMDenoiser(Spy(), (1, 1, 1), num_labels=3)(x, sigma)
    EDMDenoiser(Spy(), (1, 1, 1))(x, sigma, torch.tensor([2, 0]))
    assert seen[0].tolist() == [[0, 0, 1], [1, 0, 0]]
    assert seen[1].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert seen[2] is None


def test_minus_one_is_a_row_without_a_label_and_other_strangers_are_refused() -> None:
    cpu = torch.device("cpu")
    assert one_hot(torch.tensor([-1, 2, 0]), 3, 3, cpu).tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0]]
    for label in (3, -2):
        with pytest.raises(UsageError, match=f"expected labels 0 to 2, or -1 for none, got {label}; map"):
            one_hot(torch.tensor([0, label]), 3, 2, cpu)


def test_augmentation_labels_are_a_fourth_argument_where_they_are_given() -> None:
    seen = []

    class Spy(nn.Module):
        def forward(self, x: Tensor, *told: Tensor | None) -> Tensor:
            seen.append(told)
            return x

    x, how = torch.zeros(2, 1, 1, 1), torch.ones(2, 9)
    EDMDenoiser(Spy(), (1, 1, 1))(x, torch.ones(2), None, how)
    EDMDenoiser(Spy(), (1, 1, 1))(x, torch.ones(2))
    assert seen[0][2] is how
    assert [len(told) for told in seen] == [3, 2]


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_scaled_in_float32(half: torch.dtype) -> None:
    given = []

    class Spy(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
            given.append((x, c_noise))
            return torch.ones_like(x)

    denoiser, exact = EDMDenoiser(Spy(), (1, 2, 2)), EDMDenoiser(Constant(1.0), (1, 2, 2))
    x, sigma = torch.randn(3, 1, 2, 2).to(half), torch.tensor([0.0123, 1.2345, 77.77])
    out = denoiser(x, sigma)
    assert out.dtype == given[0][0].dtype == half
    assert torch.equal(out, exact(x.float(), sigma).to(half))
    assert torch.equal(given[0][1], (sigma.log() / 4).to(half))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(denoiser(x, sigma), exact(x.float(), sigma))
        assert given[1][0].dtype == given[1][1].dtype == torch.float32


def test_one_hot_and_column_shapes() -> None:
    assert one_hot(None, 0, 4, torch.device("cpu")) is None
    assert one_hot(torch.tensor([1]), 2, 1, torch.device("cpu")).dtype == torch.float32
    assert column(torch.ones(3), torch.zeros(3, 2, 5, 5)).shape == (3, 1, 1, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_output_keeps_the_dtype_of_the_images(dtype: torch.dtype) -> None:
    denoiser = EDMDenoiser(Constant(1.0), (1, 2, 2))
    assert denoiser(torch.zeros(2, 1, 2, 2, dtype=dtype), torch.ones(2, dtype=torch.float64)).dtype == dtype


def test_digest_of_weights_changes_with_values_names_and_types_only() -> None:
    def made(**tensors: Tensor) -> nn.Module:
        module = nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return module

    base = weights_digest(made(a=torch.arange(4.0), b=torch.ones(())))
    assert weights_digest(made(b=torch.ones(()), a=torch.arange(4.0))) == base
    strided = torch.arange(8.0).reshape(4, 2)[:, 0] / 2
    assert weights_digest(made(a=strided, b=torch.ones(()))) == base
    others = [
        made(a=torch.arange(4.0).flip(0), b=torch.ones(())),
        made(c=torch.arange(4.0), b=torch.ones(())),
        made(a=torch.arange(4.0).reshape(2, 2), b=torch.ones(())),
        made(a=torch.arange(4.0).double(), b=torch.ones(())),
    ]
    digests = {base, *(weights_digest(module) for module in others)}
    assert len(digests) == 5
    assert all(len(digest) == 16 for digest in digests)


def test_bad_network_settings_never_reach_a_denoiser() -> None:
    with pytest.raises(UsageError):
        EDMDenoiser(UNet(UNetConfig(resolution=7)), (1, 7, 7))


def test_the_digest_tells_equal_bytes_of_two_dtypes_apart_but_not_two_orders_of_registration():
    parts = {"one": nn.Linear(2, 2), "two": nn.Linear(2, 3)}
    forth, back = nn.ModuleDict(parts), nn.ModuleDict(dict(reversed(parts.items())))
    assert list(forth.state_dict()) != list(back.state_dict())
    assert weights_digest(forth) == weights_digest(back)
    for parameter in forth.parameters():
        nn.init.zeros_(parameter)
    assert weights_digest(forth.half()) != weights_digest(forth.bfloat16())


def known_weights() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    for index, tensor in enumerate(net.state_dict().values()):
        if tensor.is_floating_point():
            tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape) / 7 + index)
    return net


def test_digests_of_feature_files_that_are_there_stay_valid() -> None:
    assert weights_digest(known_weights()) == "338365ddf00793c1"


def plain_digest(module: nn.Module) -> str:
    """The digest from its definition."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@pytest.mark.parametrize("at_once", [16, 64, 2**26])
def test_the_digest_is_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    net = nn.Sequential(nn.Conv2d(5, 4, 3), nn.Linear(7, 5), nn.BatchNorm1d(3))
    net[0].weight.data = net[0].weight.data.contiguous(memory_format=torch.channels_last)
    net.register_buffer("strided", torch.arange(90.0).reshape(9, 10).t())
    net.register_buffer("every_second", torch.arange(100.0)[::2])
    net.register_buffer("empty", torch.zeros(0, 3))
    net.register_buffer("scalar", torch.tensor(3))
    expected = plain_digest(net)
    sizes = []
    parts = module_of_denoisers._parts

    def watched(tensor: Tensor) -> Iterator[Tensor]:
        for part in parts(tensor):
            sizes.append(part.numel() * part.element_size())
            if part.numel() and part.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr():
                # A copy: no more than this piece may have been copied for it.
                sizes.append(part.untyped_storage().nbytes())
            yield part

    monkeypatch.setattr(module_of_denoisers, "_AT_ONCE", at_once)
    monkeypatch.setattr(module_of_denoisers, "_parts", watched)
    assert weights_digest(net) == expected
    assert max(sizes) <= at_once


def test_a_wrapped_network_has_the_digest_of_the_bare_one() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 1)))
    expected, each = weights_digest(net), tensor_digests(net)
    compiled = torch.compile(net, backend="eager")
    assert next(iter(compiled.state_dict())).startswith("_orig_mod.")
    wrapped = [compiled, nn.DataParallel(net), nn.DataParallel(compiled)]
    for module in wrapped:
        assert weights_digest(module) == expected
        assert tensor_digests(module) == each
    net[1] = torch.compile(net[1], backend="eager")
    assert "1._orig_mod.0.weight" in net.state_dict()
    assert weights_digest(net) == expected


def test_a_part_that_is_called_module_keeps_its_name() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    holder = Holder()
    assert weights_digest(holder) == plain_digest(holder)
    assert set(tensor_digests(holder)) == {"module.weight", "module.bias"}


def test_digests_of_single_tensors_tell_which_one_has_changed() -> None:
    net = known_weights()
    before = tensor_digests(net)
    net[1].running_mean.add_(1)
    after = tensor_digests(net)
    assert [name for name in before if before[name] != after[name]] == ["1.running_mean"]


def of_extra_state() -> nn.Module:
    class Extra(nn.Linear):
        def get_extra_state(self) -> object:
            return {"steps": 3}

        def set_extra_state(self, state: object) -> None:
            pass

    return Extra(1, 1)


def of_sparse() -> nn.Module:
    module = nn.Module()
    module.register_buffer("weight", torch.eye(3).to_sparse())
    return module


def of_quantised() -> nn.Module:
    module = nn.Module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module.register_buffer("weight", torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8))
    return module


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(2, 2, device="meta"), "'bias' is on the meta device, without values; load"),
        (of_sparse, r"'weight' is sparse \(torch.sparse_coo\); call to_dense"),
        (of_quantised, "'weight' is a Tensor of torch.qint8, quantised or distributed; load plain weights"),
        (lambda: nn.LazyLinear(2), "'bias' is of a lazy module that has not run yet; run the model once"),
        (of_extra_state, "'_extra_state' is a dict; leave out extra state"),
    ],
)
def test_what_has_no_bytes_is_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(
        FeatlensError, match=f"the weights have no digest: expected dense .*{message}"
    ) as caught:
        weights_digest(make())
    assert "\n" not in str(caught.value)


def test_our_denoiser_knows_no_start_unless_it_is_told_one() -> None:
    denoiser = EDMDenoiser(Constant(0.0), (1, 2, 2))
    assert denoiser.sigma_init is None
    denoiser.sigma_init = 2.5
    assert EDMDenoiser.sigma_init is None
