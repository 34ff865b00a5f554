"""The algebra of score-free directions on Gaussians, where the log density ratio is known exactly.

Data p and student q are Gaussian, so p and q convolved with N(0, sigma^2) are, too. Expectations over the
student are Gauss-Hermite sums, exact to rounding for what is integrated here.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featlens_trainers.directions import DIVERGENCES, RatioDirection, ratio_loss, resolve_divergence

torch_f64 = torch.float64

# D_f(p || q) = E_q f(p / q), written as in a textbook.
GENERATORS = {
    "reverse_kl": lambda r: -torch.log(r),
    "forward_kl": lambda r: r * torch.log(r),
    "js": lambda r: r * torch.log(2 * r / (1 + r)) + torch.log(2 / (1 + r)),
    "softened_reverse_kl": lambda r: (1 + r) * torch.log((1 + r) / (2 * r)),
    "jeffreys": lambda r: (r - 1) * torch.log(r),
    "hellinger": lambda r: (torch.sqrt(r) - 1) ** 2,
}

# Where nothing is clipped.
EXACT = {name: resolve_divergence(name, clip=50.0) for name in DIVERGENCES}


class Gaussian:
    """N(mean, covariance) in d dimensions."""

    def __init__(self, mean: list[float], root: list[list[float]], sigma: float = 0.0) -> None:
        self.mean = torch.tensor(mean, dtype=torch_f64)
        factor = torch.tensor(root, dtype=torch_f64)
        self.covariance = factor @ factor.T + sigma**2 * torch.eye(len(mean), dtype=torch_f64)

    def log_density(self, x: Tensor) -> Tensor:
        return torch.distributions.MultivariateNormal(self.mean, self.covariance).log_prob(x)

    def nodes(self, order: int) -> tuple[Tensor, Tensor]:
        """Gauss-Hermite points (n, d) and weights (n,) of this Gaussian."""
        points, weights = np.polynomial.hermite_e.hermegauss(order)
        d = len(self.mean)
        grid = np.stack(np.meshgrid(*[points] * d, indexing="ij"), -1).reshape(-1, d)
        weight = np.prod(np.stack(np.meshgrid(*[weights] * d, indexing="ij"), -1).reshape(-1, d), 1)
        factor = torch.linalg.cholesky(self.covariance)
        return self.mean + torch.from_numpy(grid) @ factor.T, torch.from_numpy(weight / weight.sum())


class ExactRatio(nn.Module):
    """h(x, sigma) = log p_sigma(x) - log q_sigma(x), in the place of the ratio network."""

    def __init__(self, p: Gaussian, q: Gaussian) -> None:
        super().__init__()
        self.p, self.q = p, q

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.p.log_density(x) - self.q.log_density(x)


def divergence(name: str, p: Gaussian, q: Gaussian, order: int = 120) -> float:
    """Numerically integrated E_q f(p / q)."""
    x, weights = q.nodes(order)
    ratio = torch.exp(p.log_density(x) - q.log_density(x))
    return float((weights * GENERATORS[name](ratio)).sum())


def closed_form_reverse_kl(p: Gaussian, q: Gaussian) -> float:
    """KL(q || p) of Gaussians."""
    inverse = torch.linalg.inv(p.covariance)
    gap = p.mean - q.mean
    inner = torch.trace(inverse @ q.covariance) + gap @ inverse @ gap - len(gap)
    return float(0.5 * (inner + torch.logdet(p.covariance) - torch.logdet(q.covariance)))


DATA_1D = ([0.4], [[0.6]])
STUDENT_1D = ([-0.5], [[0.9]])


# --- the divergences ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIVERGENCES)
def test_weight_is_minus_the_slope_of_the_surrogate_and_equals_r2_f2(name: str) -> None:
    h = torch.linspace(-4, 4, 33, dtype=torch_f64).requires_grad_()
    entry = EXACT[name]
    (slope,) = torch.autograd.grad(entry.surrogate(h).sum(), h)
    torch.testing.assert_close(entry.weight(h.detach()), -slope)
    r = h.detach().exp().requires_grad_()
    (first,) = torch.autograd.grad(GENERATORS[name](r).sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    torch.testing.assert_close(entry.weight(h.detach()), (r**2 * second).detach())


@pytest.mark.parametrize("name", DIVERGENCES)
def test_names_agree_with_their_integrals(name: str) -> None:
    p, q = Gaussian(*DATA_1D, 0.5), Gaussian(*STUDENT_1D, 0.5)
    assert DIVERGENCES[name].name == name
    assert divergence(name, q, q) == pytest.approx(0, abs=1e-12)
    x = torch.linspace(-9, 9, 20_001, dtype=torch_f64)
    a, b = (g.log_density(x[:, None]).exp() for g in (p, q))
    middle = (a + b) / 2

    def kl(one: Tensor, other: Tensor) -> float:
        return float(torch.trapezoid(one * torch.log(one / other), x))

    expected = {
        "reverse_kl": kl(b, a),
        "forward_kl": kl(a, b),
        "js": kl(a, middle) + kl(b, middle),
        "softened_reverse_kl": 2 * kl(middle, a),
        "jeffreys": kl(a, b) + kl(b, a),
        "hellinger": float(torch.trapezoid((a.sqrt() - b.sqrt()) ** 2, x)),
    }
    assert divergence(name, p, q) == pytest.approx(expected[name], rel=1e-7)
    assert expected["reverse_kl"] == pytest.approx(closed_form_reverse_kl(p, q), rel=1e-7)
    assert expected["forward_kl"] == pytest.approx(closed_form_reverse_kl(q, p), rel=1e-7)


# --- gradient of the surrogate = gradient of the divergence -------------------------------------------------


def surrogate_gradient(name: str, p: Gaussian, q: Gaussian, sigma: float) -> tuple[Tensor, Tensor]:
    """d/d(mean of q) through x = mean + ..., and the per-sample directions with their points' weights."""
    x, weights = q.nodes(120 if len(q.mean) == 1 else 60)
    direction = RatioDirection(ExactRatio(p, q), EXACT[name])
    gradient = direction.gradient(x, torch.full((len(x),), sigma, dtype=torch_f64))
    assert gradient.shape == x.shape
    return (weights[:, None] * gradient).sum(0), gradient


@pytest.mark.parametrize("sigma", [0.05, 0.5, 2.5])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_direction_is_the_gradient_of_the_divergence_in_one_dimension(name: str, sigma: float) -> None:
    p, q = Gaussian(*DATA_1D, sigma), Gaussian(*STUDENT_1D, sigma)
    found, _ = surrogate_gradient(name, p, q, sigma)
    step = 1e-4
    ends = [
        divergence(name, p, Gaussian([STUDENT_1D[0][0] + s], STUDENT_1D[1], sigma)) for s in (step, -step)
    ]
    assert float(found[0]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5)
    if name == "reverse_kl":
        mean = STUDENT_1D[0][0] - DATA_1D[0][0]
        assert float(found[0]) == pytest.approx(mean / (0.6**2 + sigma**2), rel=1e-9)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_direction_is_the_gradient_in_the_students_spread_too(name: str) -> None:
    sigma, spread, step = 0.4, STUDENT_1D[1][0][0], 1e-4
    p, q = Gaussian(*DATA_1D, sigma), Gaussian(*STUDENT_1D, sigma)
    points, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(80))
    z, noise = (part.reshape(-1, 1) for part in torch.meshgrid(points, points, indexing="ij"))
    weight = (weights[:, None] * weights[None, :]).reshape(-1, 1) / weights.sum() ** 2
    x = STUDENT_1D[0][0] + spread * z + sigma * noise
    gradient = RatioDirection(ExactRatio(p, q), EXACT[name]).gradient(x, torch.full((len(x),), sigma))
    found = float((weight * gradient * z).sum())
    ends = [divergence(name, p, Gaussian(STUDENT_1D[0], [[spread + s]], sigma)) for s in (step, -step)]
    assert found == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_direction_is_the_gradient_of_the_divergence_in_two_dimensions(name: str) -> None:
    sigma, step = 0.7, 1e-4
    data = Gaussian([0.2, -0.3], [[0.8, 0.0], [0.4, 0.5]], sigma)
    mean, root = [-0.4, 0.3], [[0.6, 0.2], [-0.3, 0.7]]
    student = Gaussian(mean, root, sigma)
    found, _ = surrogate_gradient(name, data, student, sigma)
    for axis in range(2):
        ends = []
        for s in (step, -step):
            moved = [value + s * (index == axis) for index, value in enumerate(mean)]
            ends.append(divergence(name, data, Gaussian(moved, root, sigma), order=60))
        assert float(found[axis]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4)
    if name == "reverse_kl":
        expected = torch.linalg.solve(data.covariance, student.mean - data.mean)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_following_the_direction_moves_the_student_onto_the_data(name: str) -> None:
    sigma, mean = 0.5, -0.5
    data = Gaussian([0.4], [[0.6]], sigma)
    gaps = []
    for _ in range(60):
        student = Gaussian([mean], [[0.6]], sigma)
        found, _ = surrogate_gradient(name, data, student, sigma)
        gaps.append(abs(mean - 0.4))
        mean -= 0.5 * float(found[0])
    assert all(later < earlier for earlier, later in pairwise(gaps) if earlier > 1e-9)
    assert gaps[-1] < 0.02


# --- sigma^2 grad h = D_data - D_student --------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.05, 0.5, 2.5, 20.0])
def test_sigma_squared_times_gradient_is_the_gap_between_two_denoisers(sigma: float) -> None:
    data = ([0.2, -0.3, 0.1], [[0.8, 0.0, 0.0], [0.4, 0.5, 0.0], [0.1, 0.2, 0.9]])
    student = ([-0.4, 0.3, 0.0], [[0.6, 0.0, 0.0], [-0.3, 0.7, 0.0], [0.0, 0.5, 0.4]])
    x = torch.randn(50, 3, dtype=torch_f64, generator=torch.Generator().manual_seed(0)) * (1 + sigma)

    def denoised(mean: list[float], root: list[list[float]]) -> Tensor:
        """Posterior mean of x0 given x, by the formula for conditioning Gaussians."""
        clean, noised = Gaussian(mean, root), Gaussian(mean, root, sigma)
        gain = clean.covariance @ torch.linalg.inv(noised.covariance)
        return clean.mean + (x - clean.mean) @ gain.T

    ratio = ExactRatio(Gaussian(*data, sigma), Gaussian(*student, sigma))
    gradient = RatioDirection(ratio, DIVERGENCES["reverse_kl"]).gradient(x, torch.full((50,), sigma))
    torch.testing.assert_close(-(sigma**2) * gradient, denoised(*data) - denoised(*student))


# --- the ratio network's side -------------------------------------------------------------------------------


class Quadratic(nn.Module):
    """Logit a x^2 + b x + c, the family of exact log ratios of Gaussians."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(3, dtype=torch_f64))

    def forward(self, x: Tensor, sigma: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        return (torch.stack([x**2, x, torch.ones_like(x)], -1) @ self.weights).reshape(len(x))


def test_a_trained_classifier_recovers_the_exact_log_ratio() -> None:
    quantiles = torch.special.ndtri((torch.arange(4_000, dtype=torch_f64) + 0.5) / 4_000)
    (a, s), (m, t) = (0.4, 0.6), (-0.5, 0.9)
    real, fake = a + s * quantiles, m + t * quantiles
    network = Quadratic()
    optimizer = torch.optim.LBFGS(network.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = ratio_loss(network(real), network(fake))
        loss.backward()
        return loss

    optimizer.step(closure)
    exact = [
        0.5 / t**2 - 0.5 / s**2,
        a / s**2 - m / t**2,
        0.5 * (m / t) ** 2 - 0.5 * (a / s) ** 2 + math.log(t / s),
    ]
    assert network.weights.tolist() == pytest.approx(exact, rel=0.01)


def test_ratio_loss_is_the_cross_entropy_of_a_balanced_classifier() -> None:
    real, fake = torch.tensor([2.0, -1.0, 0.3]), torch.tensor([-2.0, 0.5, 1.0])
    entropy = nn.functional.binary_cross_entropy_with_logits
    expected = entropy(real, torch.ones(3)) + entropy(fake, torch.zeros(3))
    torch.testing.assert_close(ratio_loss(real, fake), expected)
    assert float(ratio_loss(torch.zeros(5), torch.zeros(5))) == pytest.approx(2 * math.log(2))
    assert torch.isfinite(ratio_loss(torch.tensor([-1e4]), torch.tensor([1e4])))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_no_gradient_ever_reaches_the_ratio_network(name: str) -> None:
    network = Quadratic()
    network.weights.data += torch.tensor([0.5, 1.0, 0.1])
    shift = torch.zeros(1, dtype=torch_f64, requires_grad=True)
    x = shift + torch.randn(8, 1, dtype=torch_f64, generator=torch.Generator().manual_seed(0))
    gradient = RatioDirection(network, DIVERGENCES[name]).gradient(x, torch.ones(8))
    assert not gradient.requires_grad
    (gradient * x).sum().backward()
    assert network.weights.grad is None
    assert shift.grad is not None
    assert float(shift.grad) == pytest.approx(float(gradient.sum()))
    network.weights.grad = torch.full((3,), 7.0, dtype=torch_f64)
    RatioDirection(network, DIVERGENCES[name]).gradient(x, torch.ones(8))
    assert network.weights.grad.tolist() == [7.0, 7.0, 7.0]


def test_direction_works_where_gradients_are_switched_off() -> None:
    network = Quadratic()
    network.weights.data += torch.tensor([0.5, 1.0, 0.1])
    x = torch.tensor([[1.0], [2.0]], dtype=torch_f64)
    with torch.no_grad():
        gradient = RatioDirection(network, DIVERGENCES["reverse_kl"]).gradient(x, torch.ones(2))
    torch.testing.assert_close(gradient, -(x + 1.0))


def test_a_samples_direction_does_not_depend_on_its_batch() -> None:
    p, q = Gaussian(*DATA_1D, 0.5), Gaussian(*STUDENT_1D, 0.5)
    direction = RatioDirection(ExactRatio(p, q), DIVERGENCES["js"])
    x, sigma = torch.linspace(-1, 1, 5, dtype=torch_f64)[:, None], torch.full((5,), 0.5)
    alone = torch.cat([direction.gradient(x[i : i + 1], sigma[:1]) for i in range(5)])
    torch.testing.assert_close(direction.gradient(x, sigma), alone)


def test_labels_are_passed_to_the_ratio_network() -> None:
    seen = []

    class Conditional(nn.Module):
        def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
            seen.append((sigma, labels))
            return x[:, 0] * (1 + labels)

    labels, sigma = torch.tensor([0, 3]), torch.tensor([0.1, 0.2])
    gradient = RatioDirection(Conditional(), DIVERGENCES["reverse_kl"]).gradient(
        torch.ones(2, 1), sigma, labels
    )
    assert gradient[:, 0].tolist() == [-1.0, -4.0]
    assert seen == [(sigma, labels)]
