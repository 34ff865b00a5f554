"""Extraction: features depend on weights, sample, seed and sigma, and on nothing else."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from featlens import FeatureStore, SampleSet, extract
from featlens.denoiser import EDMDenoiser
from featlens.errors import FeatlensError, FeatlensWarning, SiteError, StoreError, UsageError
from featlens.undisturbed import evaluating

SIGMAS = [0.1, 2.5]
SITES = ["enc.conv", "mid.*", "out"]


@pytest.fixture
def samples():
    return SampleSet.load("digits", n=40, seed=3)


def features(store, rows=slice(None)):
    return {(site, sigma): store.read(site, sigma, rows) for site in store.sites for sigma in store.sigmas}


def same(a, b, **tolerance):
    assert a.keys() == b.keys()
    for key, values in a.items():
        if tolerance:
            np.testing.assert_allclose(values, b[key], err_msg=str(key), **tolerance)
        else:
            assert np.array_equal(values, b[key]), key


def test_features_are_what_the_sites_give_on_the_noised_samples(tmp_path, make_denoiser, samples):
    denoiser = make_denoiser().eval()
    store = extract(denoiser, samples, SIGMAS, SITES, tmp_path / "a.h5", batch=40)
    assert list(store.sites) == ["enc.conv", "mid.0", "mid.1", "mid.2", "out"]
    for sigma in SIGMAS:
        x = torch.from_numpy(samples.images + np.float32(sigma) * samples.noise(sigma))
        with torch.no_grad():
            scaled = denoiser.scaling.c_in(torch.tensor(sigma)) * x
            expected = denoiser.network.enc["conv"](scaled).mean(dim=(2, 3))
        np.testing.assert_allclose(store.read("enc.conv", sigma), expected.numpy(), atol=1e-5)


def test_the_file_says_where_it_comes_from(tmp_path, make_denoiser, samples):
    store = extract(
        make_denoiser(), samples, SIGMAS, SITES, tmp_path / "a.h5", reduce="grid(2)", name="teacher"
    )
    assert store.complete
    assert np.array_equal(store.ids, samples.ids)
    assert np.array_equal(store.labels, samples.labels)
    assert store.sample_digest == samples.digest
    site = store.sites["mid.0"]
    assert (site.width, site.channels, site.resolution, site.reducer) == (32, 8, 4, "grid(2)")
    told = {
        key: store.manifest[key]
        for key in ("model", "reducer", "sample_set", "noise_seed", "sigmas", "sites")
    }
    assert told == {
        "model": "teacher",
        "reducer": "grid(2)",
        "sample_set": "digits",
        "noise_seed": 3,
        "sigmas": SIGMAS,
        "sites": SITES,
    }


def test_the_same_batch_size_gives_the_same_bits(tmp_path, make_denoiser, samples):
    stores = [
        extract(make_denoiser(), samples, SIGMAS, "**", tmp_path / f"{i}.h5", batch=16) for i in range(2)
    ]
    assert (tmp_path / "0.h5").read_bytes() == (tmp_path / "1.h5").read_bytes()
    same(*(features(store) for store in stores))


@pytest.mark.parametrize("batch", [1, 7, 40, 1000])
def test_the_batch_size_changes_features_by_rounding_only(tmp_path, make_denoiser, samples, batch):
    whole = extract(make_denoiser(), samples, SIGMAS, SITES, tmp_path / "whole.h5", batch=16)
    other = extract(make_denoiser(), samples, SIGMAS, SITES, tmp_path / "other.h5", batch=batch)
    same(features(other), features(whole), rtol=1e-5, atol=1e-5)


def test_the_company_of_a_sample_changes_features_by_rounding_only(tmp_path, make_denoiser, samples):
    chosen = slice(11, 29)
    part = SampleSet(
        "part", samples.images[chosen], samples.ids[chosen], samples.labels[chosen], samples.seed
    )
    whole = extract(make_denoiser(), samples, SIGMAS, SITES, tmp_path / "whole.h5")
    some = extract(make_denoiser(), part, [2.5], SITES, tmp_path / "part.h5", batch=5)
    for site in some.sites:
        np.testing.assert_allclose(some.read(site, 2.5), whole.read(site, 2.5, chosen), rtol=1e-5, atol=1e-5)


def test_another_noise_seed_gives_other_features(tmp_path, make_denoiser, samples):
    other = SampleSet("digits", samples.images, samples.ids, samples.labels, seed=4)
    stores = [
        extract(make_denoiser(), chosen, SIGMAS, SITES, tmp_path / f"{i}.h5")
        for i, chosen in enumerate((samples, other))
    ]
    assert np.abs(stores[0].read("mid.0", 2.5) - stores[1].read("mid.0", 2.5)).max() > 0.01


def test_modes_hooks_gradients_and_random_state_are_as_before(tmp_path, make_denoiser, samples):
    denoiser = make_denoiser()
    denoiser.network.mid[2].eval()
    modes = [module.training for module in denoiser.modules()]
    state = torch.get_rng_state()
    extract(denoiser, samples, SIGMAS, "**", tmp_path / "a.h5")
    assert [module.training for module in denoiser.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in denoiser.modules())


def test_evaluating_restores_the_mode_of_every_submodule_after_an_exception(make_denoiser):
    network = make_denoiser().network
    network.mid.eval()
    modes = [module.training for module in network.modules()]
    with pytest.raises(KeyboardInterrupt), evaluating(network):
        assert not any(module.training for module in network.modules())
        raise KeyboardInterrupt
    assert [module.training for module in network.modules()] == modes


def test_a_complete_file_is_used_as_it_is_also_while_it_is_open(tmp_path, make_denoiser, samples):
    path, calls = tmp_path / "a.h5", []
    first = extract(make_denoiser(), samples, SIGMAS, SITES, path)
    before, denoiser = path.read_bytes(), make_denoiser()
    denoiser.register_forward_pre_hook(lambda *_: calls.append(1))
    again = extract(denoiser, samples, SIGMAS, SITES, path)
    assert not calls
    assert path.read_bytes() == before
    same(features(again), features(first))


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("weights_digest", {"seed": 1}),
        ("sigmas", {"sigmas": [0.1]}),
        ("reducer", {"reduce": "flatten"}),
        ("sites", {"sites": "out"}),
        ("noise_seed", {"noise": 5}),
    ],
)
def test_a_file_of_another_request_is_refused_and_kept(tmp_path, make_denoiser, samples, key, change):
    path = tmp_path / "a.h5"
    extract(make_denoiser(), samples, SIGMAS, SITES, path)
    before = path.read_bytes()
    chosen = SampleSet(
        "digits", samples.images, samples.ids, samples.labels, change.get("noise", samples.seed)
    )
    with pytest.raises(
        StoreError, match=rf"a\.h5 was begun with other settings \({key}: .* choose another output"
    ):
        extract(
            make_denoiser(seed=change.get("seed", 0)),
            chosen,
            change.get("sigmas", SIGMAS),
            change.get("sites", SITES),
            path,
            change.get("reduce", "gap"),
        )
    assert path.read_bytes() == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_extraction_is_finished_with_the_same_bytes(tmp_path, make_denoiser, error):
    samples = SampleSet.load("digits", n=600)
    extract(make_denoiser(), samples, SIGMAS, SITES, tmp_path / "whole.h5")

    def interrupt(done, total):
        if done == 856:
            raise error

    path = tmp_path / "a.h5"
    with pytest.raises(error):
        extract(make_denoiser(), samples, SIGMAS, SITES, path, progress=interrupt)
    with FeatureStore(path) as store:
        assert store.rows_done.tolist() == [600, 256]
    told = []
    extract(make_denoiser(), samples, SIGMAS, SITES, path, progress=lambda *done: told.append(done))
    assert told == [(1112, 1200), (1200, 1200)]
    assert path.read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_a_conditional_model_gets_the_labels_and_is_refused_without(tmp_path, make_denoiser, samples):
    bare = SampleSet.from_arrays(samples.images)
    with pytest.raises(UsageError, match=r"conditional \(10 classes\), but 'arrays' has no labels"):
        extract(make_denoiser(10), bare, SIGMAS, SITES, tmp_path / "a.h5")
    with pytest.raises(UsageError, match="knows labels 0 to 2, 'digits' has 0 to 9"):
        extract(make_denoiser(3), samples, SIGMAS, SITES, tmp_path / "a.h5", batch=40)
    denoiser, given = make_denoiser(10), []
    denoiser.register_forward_pre_hook(lambda module, inputs: given.append(inputs[2]))
    extract(denoiser, samples, [0.5], SITES, tmp_path / "b.h5", batch=40)
    assert np.array_equal(given[-1].numpy(), samples.labels)


def test_an_unconditional_model_gets_no_labels(tmp_path, make_denoiser, samples):
    denoiser, given = make_denoiser(), []
    denoiser.register_forward_pre_hook(lambda module, inputs: given.append(inputs[2]))
    extract(denoiser, samples, [0.5], SITES, tmp_path / "a.h5")
    assert set(given) == {None}


def test_a_model_that_gives_nan_is_named_with_site_sigma_and_row(tmp_path, make_denoiser, samples):
    denoiser = make_denoiser()

    def spoil(module, inputs, output):
        if len(output) > 4:
            output[4] = float("nan")

    denoiser.network.mid[0].register_forward_hook(spoil)
    with pytest.raises(
        FeatlensError, match=r"site 'mid\.0' at sigma 0\.1 are not finite in sample row 4;"
    ) as caught:
        extract(denoiser, samples, SIGMAS, SITES, tmp_path / "a.h5", batch=40)
    assert "\n" not in str(caught.value)
    with FeatureStore(tmp_path / "a.h5") as store:
        assert store.rows_done.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"sites": "enc.cnov"},
            SiteError,
            r"no site 'enc\.cnov' in the network Net: did you mean 'enc\.conv'",
        ),
        ({"sigmas": []}, UsageError, r"one or more numbers above 0, got \[\]"),
        ({"sigmas": [0.5, 0]}, UsageError, r"numbers above 0, got \[0\.5, 0\.0\]"),
        ({"sigmas": [1e39]}, UsageError, r"in float32, which does not hold all of \[1e\+39\]"),
        ({"sigmas": [float("nan")]}, UsageError, r"numbers above 0, got \[nan\]"),
        ({"sigmas": [0.5, 0.5]}, UsageError, "a sigma is given twice"),
        ({"sigmas": "half"}, UsageError, "sigmas must be numbers above 0, got 'half'"),
        ({"batch": 0}, UsageError, "a batch holds at least one image, got 0"),
        ({"reduce": "gpa"}, UsageError, "unknown reduction 'gpa': did you mean 'gap'"),
        (
            {"reduce": lambda x: x},
            UsageError,
            r"\(1, 6, 8, 8\) came out of site 'enc\.conv' and its reduction for 1",
        ),
        (
            {"reduce": lambda x: x.mean(dim=0).flatten(1)},
            UsageError,
            r"\(6, 64\) came out of site 'enc\.conv'",
        ),
        (
            {"sites": "enc.*", "reduce": "grid(2)", "out": "nowhere/a.h5"},
            FeatlensError,
            "no such file or folder",
        ),
    ],
)
def test_wrong_requests_are_refused_before_a_file_is_made(
    tmp_path, make_denoiser, samples, options, error, message
):
    arguments = {"sigmas": SIGMAS, "sites": SITES, "out": "a.h5"} | options
    arguments["out"] = tmp_path / arguments["out"]
    with pytest.raises(error, match=message):
        extract(make_denoiser(), samples, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_samples_of_another_shape_are_refused(tmp_path, make_denoiser):
    with pytest.raises(UsageError, match=r"takes samples of shape \(1, 8, 8\), 'arrays' has \(3, 8, 8\)"):
        extract(
            make_denoiser(), SampleSet.from_arrays(np.zeros((2, 3, 8, 8))), SIGMAS, SITES, tmp_path / "a.h5"
        )


def test_a_site_that_does_not_run_is_named(tmp_path, make_denoiser, samples):
    denoiser = make_denoiser()
    denoiser.network.unused = nn.Identity()
    with pytest.raises(SiteError, match="1 chosen sites did not run in the forward pass, first 'unused'"):
        extract(denoiser, samples, SIGMAS, "*", tmp_path / "a.h5")


def test_a_module_that_runs_twice_gives_two_sites(tmp_path, samples):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x, c_noise, labels):
            return self.conv(self.conv(x))

    store = extract(EDMDenoiser(Net(), (1, 8, 8)), samples, [0.5], "conv", tmp_path / "a.h5")
    assert list(store.sites) == ["conv#0", "conv#1"]


def test_a_host_denoiser_that_is_no_module_is_put_on_the_device(
    tmp_path, make_denoiser, samples, monkeypatch
):
    denoiser, moved = make_denoiser(), []
    monkeypatch.setattr(denoiser.network, "to", moved.append)

    class Host(SimpleNamespace):
        def __call__(self, x, sigma, labels=None):
            return denoiser(x, sigma, labels)

    host = Host(sample_shape=(1, 8, 8), num_labels=0, sigma_data=0.5, network=denoiser.network)
    extract(host, samples, [0.5], SITES, tmp_path / "a.h5", device="cpu")
    assert moved == ["cpu"]


def test_shards_of_processes_that_did_not_finish_are_told_of(tmp_path, make_denoiser, samples):
    (tmp_path / "a.shard-0-of-2.h5").touch()
    with pytest.warns(FeatlensWarning, match=r"a\.shard-0-of-2\.h5 was left by several processes"):
        extract(make_denoiser(), samples, SIGMAS, SITES, tmp_path / "a.h5")


def test_one_sigma_needs_no_list(tmp_path, make_denoiser, samples):
    store = extract(make_denoiser(), samples, 0.5, "@out", tmp_path / "a.h5")
    assert store.sigmas.tolist() == [0.5]
    assert list(store.sites) == ["@out"]
