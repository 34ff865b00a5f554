"""Coordinates of other projects: closed-form Gaussian denoisers, and diffusers' schedulers as oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featlens.errors import UsageError
from featlens.parameterisation import (
    EDM,
    PREDICTIONS,
    SCHEDULES,
    Betas,
    FlowMatch,
    ScoreSdeVe,
    make_betas,
)

sigmas = st.floats(0.02, 50.0)
spreads = st.floats(0.1, 3.0)


def f64(value):
    return torch.tensor([value], dtype=torch.float64)


# x0 ~ N(0, s^2) and x = x0 + sigma eps: E[x0 | x] = x s^2 / (s^2 + sigma^2). For each
# parameterisation `ideal` is the best network, a function of its own input and time alone, by the textbook.


def vp_ideal(noise, prediction):
    """Best network of x_t = a x0 + b eps at a step: E[. | x_t] is linear."""

    def network(given, time, s):
        sigma = math.exp(np.interp(float(time), np.arange(len(noise.log_sigmas)), noise.log_sigmas))
        a, b = 1 / math.sqrt(1 + sigma**2), sigma / math.sqrt(1 + sigma**2)
        variance = a**2 * s**2 + b**2
        image, eps = a * s**2 / variance * given, b / variance * given
        return {"epsilon": eps, "sample": image, "v_prediction": a * eps - b * image}[prediction]

    return network


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@given(sigma=sigmas, s=spreads)
def test_betas_give_the_closed_form_denoiser_of_gaussian_data(schedule, prediction, sigma, s):
    noise = Betas(make_betas(schedule), prediction)
    low, high = noise.sigma_range
    sigma = min(max(sigma, low), high)
    check_gaussian(noise, vp_ideal(noise, prediction), sigma, s)


@given(sigma=sigmas, s=spreads)
def test_scores_give_the_closed_form_denoiser_of_gaussian_data(sigma, s):
    check_gaussian(ScoreSdeVe(), lambda given, time, s: -given / (s**2 + time**2), sigma, s)


@pytest.mark.parametrize(("prediction", "sign"), [("epsilon", 1), ("v_prediction", -1)])
@given(sigma=sigmas, s=spreads, data=spreads)
def test_edm_gives_the_closed_form_denoiser_of_gaussian_data(prediction, sign, sigma, s, data):
    def ideal(given, time, s):
        level = (4 * time).exp()
        total = data**2 + level**2
        x = given * total.sqrt()
        best = x * s**2 / (s**2 + level**2)
        return sign * (best - data**2 / total * x) * total.sqrt() / (level * data)

    check_gaussian(EDM(data, prediction=prediction), ideal, sigma, s)


@given(sigma=sigmas, s=spreads, steps=st.integers(1, 1000))
def test_flows_give_the_closed_form_denoiser_of_gaussian_data(sigma, s, steps):
    def ideal(given, time, s):
        t = time / steps
        variance = (1 - t) ** 2 * s**2 + t**2
        return (t - (1 - t) * s**2) / variance * given

    check_gaussian(FlowMatch(steps), ideal, sigma, s)


def check_gaussian(parameterisation, ideal, sigma, s):
    x, level = torch.tensor([[1.7]], dtype=torch.float64), f64(sigma)
    out = ideal(parameterisation.given(x, level), parameterisation.time(level), s)
    expected = 1.7 * s**2 / (s**2 + sigma**2)
    assert float(parameterisation.x0(x, level, out)) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_rows_have_their_own_sigma():
    x, level = (
        torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0.1, 1.0, 9.0]),
    )
    made = [*(Betas(make_betas(), kind) for kind in PREDICTIONS), ScoreSdeVe(), EDM(), FlowMatch()]
    for noise in made:
        given_, time, x0 = noise.given(x, level), noise.time(level), noise.x0(x, level, 2 * x)
        for row in range(3):
            here = slice(row, row + 1)
            torch.testing.assert_close(given_[here], noise.given(x[here], level[here]))
            torch.testing.assert_close(time[here], noise.time(level[here]))
            torch.testing.assert_close(x0[here], noise.x0(x[here], level[here], 2 * x[here]))


def test_time_is_interpolated_in_log_sigma_and_the_nearest_for_whole_steps():
    noise, whole = Betas(make_betas()), Betas(make_betas(), whole=True)
    table = np.exp(noise.log_sigmas)
    np.testing.assert_allclose(noise.time(torch.tensor(table)).numpy(), np.arange(1000), atol=1e-9)
    between = torch.tensor(np.exp(0.7 * noise.log_sigmas[:-1] + 0.3 * noise.log_sigmas[1:]))
    np.testing.assert_allclose(noise.time(between).numpy(), np.arange(999) + 0.3, atol=1e-9)
    assert whole.time(between).tolist() == list(range(999))
    above = torch.tensor(np.exp(0.3 * noise.log_sigmas[:-1] + 0.7 * noise.log_sigmas[1:]))
    assert whole.time(above).tolist() == list(range(1, 1000))
    assert whole.time(above).dtype == torch.int64
    assert noise.time(above.float()).dtype == torch.float32


def test_beyond_the_ends_the_first_and_last_step_are_told():
    noise = Betas(make_betas())
    assert noise.time(torch.tensor([1e-4, 1e4])).tolist() == [0.0, 999.0]
    one = Betas([0.5])
    assert one.sigma_range == pytest.approx((1.0, 1.0))
    assert one.time(torch.tensor([0.5, 1.0, 2.0])).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_schedules_are_those_of_diffusers(schedule, zero_snr):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(
        200, 0.0015, 0.03, schedule, rescale_betas_zero_snr=zero_snr
    ).alphas_cumprod.double()
    noise = Betas(make_betas(schedule, 0.0015, 0.03, 200), zero_snr=zero_snr)
    expected = ((1 - theirs) / theirs).sqrt().numpy()
    count = len(noise.log_sigmas)
    assert count == (199 if zero_snr else 200)
    # Theirs are products in float32; near the end of a rescaled schedule little is left of them.
    compared = count - 10
    np.testing.assert_allclose(np.exp(noise.log_sigmas)[:compared], expected[:compared], rtol=2e-3)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_step_of_diffusers_ddpm_arrives_at_the_same_image(prediction):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(clip_sample=False, prediction_type=prediction)
    noise = Betas(make_betas(), prediction)
    numbers = torch.Generator().manual_seed(0)
    for step in (0, 10, 300, 700):
        sigma = torch.tensor([math.exp(noise.log_sigmas[step])])
        x0, eps = torch.randn(2, 1, 1, 4, 4, generator=numbers)
        x = x0 + sigma * eps
        given = noise.given(x, sigma)
        torch.testing.assert_close(
            given, theirs.add_noise(x0, eps, torch.tensor([step])), rtol=1e-4, atol=1e-5
        )
        out = torch.randn(1, 1, 4, 4, generator=numbers)
        expected = theirs.step(out, step, given).pred_original_sample
        gap = (noise.x0(x, sigma, out) - expected).abs().max()
        assert float(gap) < 2e-4 * float(expected.abs().max())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm_is_preconditioned_as_in_diffusers(prediction):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.EDMEulerScheduler(sigma_data=0.7, prediction_type=prediction)
    ours = EDM(0.7, prediction=prediction)
    x, out = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0))
    for value in (0.01, 0.7, 30.0):
        sigma = torch.full((3,), value)
        torch.testing.assert_close(ours.given(x, sigma), theirs.precondition_inputs(x, sigma[0]))
        torch.testing.assert_close(ours.time(sigma)[0], theirs.precondition_noise(sigma[0]))
        torch.testing.assert_close(ours.x0(x, sigma, out), theirs.precondition_outputs(x, out, sigma[0]))


def test_a_flow_is_noised_as_in_diffusers():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.FlowMatchEulerDiscreteScheduler()
    x0, eps = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(0))
    for index in (1, 400, 999):
        t = theirs.sigmas[index]
        sigma = (t / (1 - t))[None]
        torch.testing.assert_close(
            FlowMatch().given(x0 + sigma * eps, sigma),
            theirs.scale_noise(x0, theirs.timesteps[index][None], eps),
        )
        torch.testing.assert_close(FlowMatch().time(sigma)[0], theirs.timesteps[index], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_betas("liner"), "unknown beta_schedule 'liner': did you mean 'linear'"),
        (
            lambda: Betas([0.1], "noise"),
            "unknown prediction_type 'noise': choose from epsilon, sample, v_pred",
        ),
        (lambda: Betas([0.1, 0.0]), "betas: expected one or more numbers above 0 and below 1; check"),
        (lambda: Betas([]), "betas: expected one or more numbers above 0"),
        (lambda: Betas([1.0]), "betas: no step keeps any of the image"),
        (
            lambda: EDM(prediction="sample"),
            "prediction_type 'sample' does not go with EDM; choose epsilon or v",
        ),
    ],
)
def test_what_is_no_schedule_is_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_grows(schedule):
    noise = Betas(make_betas(schedule))
    assert (np.diff(noise.log_sigmas) > 0).all()
