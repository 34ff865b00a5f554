"""What goes into the model: latents, labels, halves of the batch, number formats; and what is kept once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from featlens import FeatureStore, SampleSet, compare, extract
from featlens.denoiser import EDMDenoiser
from featlens.errors import FeatlensError, StoreError, UsageError

SITES = ["enc.conv", "mid.*", "out"]


@pytest.fixture
def samples():
    return SampleSet.load("digits", n=40, seed=3)


@pytest.fixture
def recorded():
    """Inputs that a denoiser was given, in order."""

    def watch(denoiser):
        given = []
        denoiser.register_forward_pre_hook(lambda module, inputs: given.append(inputs))
        return given

    return watch


def test_latents_are_sigma_times_the_noise_of_the_sample(tmp_path, make_denoiser, samples, recorded):
    denoiser = make_denoiser()
    given = recorded(denoiser)
    store = extract(denoiser, samples, [2.5], SITES, tmp_path / "a.h5", inputs="latents", batch=40)
    np.testing.assert_allclose(given[-1][0].numpy(), 2.5 * samples.noise(2.5), rtol=1e-6)
    assert store.manifest["inputs"] == "latents"
    assert store.sample_digest == samples.digest


def test_latents_start_where_the_generator_says(tmp_path, make_denoiser, samples):
    denoiser = make_denoiser()
    with pytest.raises(UsageError, match="sigma_init, which this model does not tell"):
        extract(denoiser, samples, None, SITES, tmp_path / "a.h5", inputs="latents")
    denoiser.sigma_init = 2.5
    store = extract(denoiser, samples, None, SITES, tmp_path / "a.h5", inputs="latents")
    assert store.sigmas.tolist() == [2.5]
    with pytest.raises(UsageError, match=r"no sigmas; give one or more$"):
        extract(denoiser, samples, None, SITES, tmp_path / "b.h5")


def test_latents_need_no_images(tmp_path, make_denoiser, samples):
    noise = SampleSet.noise_only(40, (1, 8, 8), seed=3)
    store = extract(make_denoiser(), noise, [2.5], SITES, tmp_path / "a.h5", inputs="latents", batch=8)
    expected = 2.5 * noise.noise(2.5)
    with torch.no_grad():
        denoiser = make_denoiser().eval()
        x = denoiser.scaling.c_in(torch.tensor(2.5)) * torch.from_numpy(expected)
        conv = denoiser.network.enc["conv"](x).mean(dim=(2, 3))
    np.testing.assert_allclose(store.read("enc.conv", 2.5), conv.numpy(), atol=1e-5)


def test_noised_and_latent_features_are_not_taken_for_one_another(tmp_path, make_denoiser, samples):
    extract(make_denoiser(), samples, [2.5], SITES, tmp_path / "a.h5")
    with pytest.raises(FeatlensError, match="begun with other settings"):
        extract(make_denoiser(), samples, [2.5], SITES, tmp_path / "a.h5", inputs="latents")


def test_noised_and_latent_features_are_not_compared(tmp_path, make_denoiser, samples):
    files = {}
    for inputs in ("noised", "latents"):
        files[inputs] = tmp_path / f"{inputs}.h5"
        extract(make_denoiser(), samples, [2.5], SITES, files[inputs], inputs=inputs).close()
    with pytest.raises(StoreError, match=r"was extracted on noised inputs, .* on latents ones"):
        compare(files)
    result = compare(files, allow_other_samples=True, permutations=0)
    assert len(result.to_frame())


def test_with_and_without_labels_are_kept_apart(tmp_path, make_denoiser, samples, recorded):
    denoiser = make_denoiser(10)
    given = recorded(denoiser)
    both = extract(denoiser, samples, [0.5], SITES, tmp_path / "both.h5", labels="both", batch=40)
    labels = [None if inputs[2] is None else inputs[2].tolist() for inputs in given[-2:]]
    assert labels == [samples.labels.tolist(), None]
    assert torch.equal(given[-1][0], given[-2][0])
    for wanted, suffix in (("given", "@cond"), ("none", "@uncond")):
        alone = extract(denoiser, samples, [0.5], SITES, tmp_path / f"{wanted}.h5", labels=wanted)
        for site in alone.sites:
            assert np.array_equal(alone.read(site, 0.5), both.read(f"{site}{suffix}", 0.5)), site
    assert len(both.sites) == 2 * len(alone.sites)
    assert not np.array_equal(both.read("mid.0@cond", 0.5), both.read("out@uncond", 0.5))


def test_labels_make_no_sense_for_an_unconditional_model(tmp_path, make_denoiser, samples):
    for wanted in ("none", "both"):
        with pytest.raises(UsageError, match=f"labels='{wanted}' needs a conditional model"):
            extract(make_denoiser(), samples, [0.5], SITES, tmp_path / "a.h5", labels=wanted)


class Guided(nn.Module):
    """Doubles its batch as pipelines with classifier-free guidance do: unconditional half first."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, c_noise, labels):
        doubled = torch.cat([torch.zeros_like(labels), labels])
        out = self.inner(torch.cat([x, x]), torch.cat([c_noise, c_noise]), doubled)
        without, given = out.chunk(2)
        return without + 2 * (given - without)


@pytest.mark.parametrize("batch", [40, 7])
def test_halves_of_a_guided_model_are_kept_apart(tmp_path, make_denoiser, samples, batch):
    inner = make_denoiser(10)
    guided = EDMDenoiser(Guided(inner.network), (1, 8, 8), 10)
    store = extract(
        guided, samples, [0.5], "inner.out", tmp_path / "a.h5", halves=("uncond", "cond"), batch=batch
    )
    assert list(store.sites) == ["inner.out@uncond", "inner.out@cond"]
    apart = extract(inner, samples, [0.5], "out", tmp_path / "b.h5", labels="both", batch=batch)
    for half in ("cond", "uncond"):
        np.testing.assert_allclose(
            store.read(f"inner.out@{half}", 0.5), apart.read(f"out@{half}", 0.5), rtol=1e-4, atol=1e-5
        )


def test_a_doubled_batch_without_names_is_refused_with_the_way_out(tmp_path, make_denoiser, samples):
    guided = EDMDenoiser(Guided(make_denoiser(10).network), (1, 8, 8), 10)
    with pytest.raises(UsageError, match=r"double its batch.*halves='uncond,cond'"):
        extract(guided, samples, [0.5], "inner.out", tmp_path / "a.h5")
    for wrong in (["one"], ["a", "a"], ["a", "b/c"], "one"):
        with pytest.raises(UsageError, match="halves are two or more names"):
            extract(guided, samples, [0.5], "inner.out", tmp_path / "a.h5", halves=wrong)


class TwoCalls(nn.Module):
    """A denoiser that runs its network twice in a call, conditional and not, one after the other."""

    def __init__(self, inner):
        super().__init__()
        self.network = inner.network
        self.inner = inner
        self.sample_shape, self.num_labels, self.sigma_data = (1, 8, 8), 10, 0.5

    def forward(self, x, sigma, labels=None):
        return 2 * self.inner(x, sigma, labels) - self.inner(x, sigma, None)


def test_a_model_that_runs_its_network_twice_keeps_both(tmp_path, make_denoiser, samples):
    inner = make_denoiser(10)
    twice = extract(TwoCalls(inner), samples, [0.5], "out", tmp_path / "a.h5")
    both = extract(inner, samples, [0.5], "out", tmp_path / "b.h5", labels="both")
    assert list(twice.sites) == ["out#0", "out#1"]
    for call, half in (("out#0", "out@cond"), ("out#1", "out@uncond")):
        assert np.array_equal(twice.read(call, 0.5), both.read(half, 0.5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_networks_of_other_number_formats_get_inputs_of_theirs(tmp_path, make_denoiser, samples, dtype):
    reference = extract(make_denoiser(), samples, [0.5], SITES, tmp_path / "a.h5")
    denoiser = make_denoiser().to(dtype)
    store = extract(denoiser, samples, [0.5], SITES, tmp_path / "b.h5")
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
    for site in store.sites:
        values, expected = store.read(site, 0.5), reference.read(site, 0.5)
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, expected, rtol=tolerance, atol=tolerance)


def test_autocast_is_told_in_the_manifest(tmp_path, make_denoiser, samples):
    plain = extract(make_denoiser(), samples, [0.5], SITES, tmp_path / "a.h5")
    store = extract(make_denoiser(), samples, [0.5], SITES, tmp_path / "b.h5", precision="bfloat16")
    assert (plain.manifest.get("precision"), store.manifest["precision"]) == (None, "bfloat16")
    difference = np.abs(store.read("mid.0", 0.5) - plain.read("mid.0", 0.5)).max()
    assert 0 < difference < 0.05
    with pytest.raises(UsageError, match="unknown precision 'bf16'"):
        extract(make_denoiser(), samples, [0.5], SITES, tmp_path / "c.h5", precision="bf16")


def test_half_the_bytes_and_float32_reads(tmp_path, make_denoiser, samples):
    whole = extract(make_denoiser(), samples, [0.5], SITES, tmp_path / "a.h5")
    half = extract(make_denoiser(), samples, [0.5], SITES, tmp_path / "b.h5", dtype="float16")
    for site in whole.sites:
        expected = whole.read(site, 0.5).astype(np.float16)
        assert np.array_equal(half.read(site, 0.5), expected.astype(np.float32))
        assert half.read(site, 0.5).dtype == np.float32


def test_numbers_beyond_float16_are_refused_with_the_site(tmp_path, make_denoiser, samples):
    denoiser = make_denoiser()
    with torch.no_grad():
        denoiser.network.enc["conv"].bias.fill_(1e6)
    with pytest.raises(FeatlensError, match=r"'enc\.conv'.*float16"):
        extract(denoiser, samples, [0.5], ["enc.conv"], tmp_path / "a.h5", dtype="float16")


def test_compressing_keeps_every_bit(tmp_path, make_denoiser, samples):
    plain = extract(make_denoiser(), samples, [0.5, 2.5], "**", tmp_path / "a.h5", reduce="flatten")
    packed = extract(
        make_denoiser(), samples, [0.5, 2.5], "**", tmp_path / "b.h5", reduce="flatten", compress=True
    )
    assert (tmp_path / "b.h5").stat().st_size < (tmp_path / "a.h5").stat().st_size
    for site in plain.sites:
        for sigma in (0.5, 2.5):
            assert np.array_equal(plain.read(site, sigma), packed.read(site, sigma))
    packed.close()
    before = (tmp_path / "b.h5").read_bytes()
    extract(make_denoiser(), samples, [0.5, 2.5], "**", tmp_path / "b.h5", reduce="flatten", compress=True)
    assert (tmp_path / "b.h5").read_bytes() == before


def test_identical_features_of_two_sites_are_stored_once(tmp_path, samples):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.enc = nn.Sequential(nn.Conv2d(1, 64, 3, padding=1), nn.Conv2d(64, 64, 1))
            self.out = nn.Conv2d(64, 1, 1)

        def forward(self, x, c_noise, labels):
            return self.out(self.enc(x))

    denoiser = EDMDenoiser(Net(), (1, 8, 8))
    both = extract(denoiser, samples, [0.5], ["enc", "enc.1"], tmp_path / "both.h5", reduce="flatten")
    extract(denoiser, samples, [0.5], ["enc.1"], tmp_path / "one.h5", reduce="flatten")
    assert list(both.sites) == ["enc.1", "enc"]
    assert [both.sites[name].order for name in both.sites] == [0, 1]
    assert np.array_equal(both.read("enc", 0.5), both.read("enc.1", 0.5))
    assert (tmp_path / "both.h5").stat().st_size < 1.1 * (tmp_path / "one.h5").stat().st_size


def test_tokens_are_stored_one_after_the_other(tmp_path, make_denoiser, samples):
    store = extract(make_denoiser(), samples, [0.5], ["mid.0"], tmp_path / "a.h5", reduce="tokens")
    flat = extract(make_denoiser(), samples, [0.5], ["mid.0"], tmp_path / "b.h5", reduce="flatten")
    tokens = store.read("mid.0", 0.5).reshape(40, 16, 8)
    assert np.array_equal(tokens, flat.read("mid.0", 0.5).reshape(40, 8, 16).transpose(0, 2, 1))


def test_a_batch_larger_than_a_block_is_used_whole(tmp_path, make_denoiser, recorded):
    samples = SampleSet.load("digits", n=1200)
    denoiser = make_denoiser()
    given = recorded(denoiser)
    store = extract(denoiser, samples, [0.5], "mid.0", tmp_path / "a.h5", batch=600)
    assert [len(inputs[0]) for inputs in given] == [1, 512, 512, 176]
    small = extract(make_denoiser(), samples, [0.5], "mid.0", tmp_path / "b.h5", batch=64)
    np.testing.assert_allclose(store.read("mid.0", 0.5), small.read("mid.0", 0.5), rtol=1e-5, atol=1e-6)


def test_what_comes_after_the_last_site_is_not_run(tmp_path, make_denoiser, samples):
    denoiser, ran = make_denoiser(), []
    denoiser.network.out.register_forward_hook(lambda *_: ran.append(1))
    extract(denoiser, samples, [0.5], "mid.0", tmp_path / "a.h5", batch=10)
    assert len(ran) == 1  # The first pass is whole: it tells which call is the last.


def test_a_reduction_of_ones_own_leaves_the_random_state(tmp_path, make_denoiser, samples):
    state = torch.get_rng_state()

    def shuffled(x):
        return x.flatten(1)[:, torch.randperm(x[0].numel())[:4]]

    extract(make_denoiser(), samples, [0.5], "mid.0", tmp_path / "a.h5", reduce=shuffled)
    assert torch.equal(torch.get_rng_state(), state)


def test_selectors_of_every_kind_are_told_in_the_manifest(tmp_path, make_denoiser, samples):
    chosen = ["type:Conv2d", 1, lambda name, module: name == "out"]
    with extract(make_denoiser(), samples, [0.5], chosen, tmp_path / "a.h5") as store:
        assert store.manifest["sites"][:2] == ["type:Conv2d", "index:1"]
        assert "lambda" in store.manifest["sites"][2]
        assert {"enc.conv", "mid.0", "out"} <= set(store.sites)
    with FeatureStore(tmp_path / "a.h5") as store:
        assert store.complete


def test_the_file_says_which_versions_made_it(tmp_path, make_denoiser, samples):
    with extract(make_denoiser(), samples, [0.5], "mid.0", tmp_path / "a.h5") as store:
        creator = store.manifest["creator"]
    assert f"torch {torch.__version__}" in creator and f"numpy {np.__version__}" in creator
    assert creator.startswith("featlens ")


class Careless:
    """Changes everything that it is given, in place."""

    sample_shape, sigma_data, num_labels = (1, 8, 8), 0.5, 10

    def __init__(self, careful=False):
        torch.manual_seed(0)
        self.network, self.careful = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), careful

    def __call__(self, x, sigma, labels=None):
        if self.careful:
            x, sigma, labels = x.clone(), sigma.clone(), None if labels is None else labels.clone()
        x.mul_(sigma.add_(1)[:, None, None, None])
        if labels is not None:
            x.add_(labels[:, None, None, None])
            labels.zero_()
        return self.network(x)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("labels", ["given", "both"])
def test_a_model_that_changes_its_arguments_in_place_spoils_nothing(tmp_path, samples, labels, inference):
    before = samples.labels.copy()
    with torch.inference_mode(inference):
        stores = [
            extract(model, samples, [0.1, 2.5], "1", tmp_path / f"{model.careful}.h5", batch=8, labels=labels)
            for model in (Careless(), Careless(careful=True))
        ]
    assert np.array_equal(samples.labels, before)
    for site in stores[0].sites:
        for sigma in (0.1, 2.5):
            assert np.array_equal(stores[0].read(site, sigma), stores[1].read(site, sigma)), site


def test_a_site_without_numbers_is_named(tmp_path, samples):
    model = Careless()
    model.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    model.network[0].register_forward_hook(lambda module, inputs, output: output[:, :0])
    model.network[1].register_forward_pre_hook(lambda module, inputs: (inputs[0].new_zeros(8, 64),))
    with pytest.raises(UsageError, match=r"nothing is in \(1, 0\) of site '0'; leave it out"):
        extract(model, samples, [0.5], "0", tmp_path / "a.h5")


class Loops(nn.Module):
    """Runs a layer as often as the noise level asks for."""

    def __init__(self, times):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)
        self.times = times

    def forward(self, x, c_noise, labels):
        for _ in range(self.times(c_noise, labels)):
            x = self.layer(x)
        return x


@pytest.mark.parametrize("sigmas", [[0.5, 1.0], [1.0, 0.5]])
def test_a_module_that_runs_more_often_at_one_sigma_is_refused(tmp_path, samples, sigmas):
    denoiser = EDMDenoiser(Loops(lambda c_noise, labels: 1 if c_noise[0] < -0.1 else 2), (1, 8, 8))
    with pytest.raises(UsageError, match=r"site 'layer(#0)?' .* no fixed sites: leave this one out"):
        extract(denoiser, samples, sigmas, "layer", tmp_path / "a.h5")


def test_each_of_both_passes_has_its_own_calls(tmp_path, samples):
    denoiser = EDMDenoiser(Loops(lambda c_noise, labels: 1 if labels.any() else 2), (1, 8, 8), 10)
    store = extract(denoiser, samples, [0.5], "layer", tmp_path / "a.h5", labels="both", batch=16)
    assert list(store.sites) == ["layer@cond", "layer#0@uncond", "layer#1@uncond"]


def test_the_model_says_itself_why_it_fails(tmp_path, samples):
    denoiser = EDMDenoiser(Loops(lambda c_noise, labels: 1 // 0), (1, 8, 8))
    with pytest.raises(
        FeatlensError, match=r"failed on rows 0 to 1 at sigma 0\.5: ZeroDivisionError"
    ) as caught:
        extract(denoiser, samples, [0.5], "layer", tmp_path / "a.h5")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_flat_networks_have_sites_by_default_too(tmp_path, make_denoiser, samples):
    flat = EDMDenoiser(Loops(lambda c_noise, labels: 1), (1, 8, 8))
    assert list(extract(flat, samples, [0.5], out=tmp_path / "a.h5").sites) == ["layer"]
    nested = extract(make_denoiser(), samples, [0.5], out=tmp_path / "b.h5")
    assert nested.manifest["sites"] == ["*.*"]


def test_halves_of_a_model_that_has_none_are_refused(tmp_path, make_denoiser, samples):
    with pytest.raises(UsageError, match="does not double its batch: leave halves out"):
        extract(make_denoiser(), samples, [0.5], "out", tmp_path / "a.h5", halves=("uncond", "cond"))
