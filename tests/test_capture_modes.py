"""Capture in compiled, wrapped, scripted and half-precision models, and in special modes of torch."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from featlens import Capture, sites
from featlens.errors import FeatlensError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
        self.b = nn.Linear(4, 2)

    def forward(self, x):
        return self.b(self.body(torch.relu(self.a(x))))


NAMES = ["a", "body.0", "body.1", "body", "b"]


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def x():
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def counter():
    """Backend that counts what is compiled; nothing of it is left afterwards."""
    dynamo = pytest.importorskip("torch._dynamo")
    testing = pytest.importorskip("torch._dynamo.testing")
    yield testing.CompileCounter()
    dynamo.reset()


def check_capture(net, call, x):
    """All sites of ``net``, wrapped or not, are there and right when ``call(x)`` runs it."""
    state = {key.replace("_orig_mod.", "").removeprefix("module."): v for key, v in net.state_dict().items()}
    plain = Net()
    plain.load_state_dict(state)
    with Capture(plain, "**") as expected:
        out = plain(x)
    assert sorted(site.name for site in sites(net)) == sorted(NAMES)
    assert [site.name for site in sites(net, inputs=x)] == NAMES
    for reduce in (None, "gap"):
        with Capture(net, ["**", "b@in"], reduce) as seen:
            assert torch.equal(call(x), out)
        assert list(seen) == [*NAMES[:4], "b@in", "b"]
        assert all(torch.equal(seen[name], expected[name]) for name in NAMES)
        assert seen.kinds["body"] == "Sequential"
    with Capture(net, "body", grad=True) as seen:
        value = call(x).sum()
    assert torch.autograd.grad(value, seen["body"])[0].shape == (5, 4)


def stance():
    import torch._dynamo.eval_frame as frame

    return frame._stance.stance


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # inside torch.compile
@pytest.mark.parametrize("how", ["module", "method", "submodule", "function", "nothing"])
def test_what_was_compiled_is_captured_and_not_compiled_again(net, x, counter, warm, how):
    call = net
    if how == "module":
        call = torch.compile(net, backend=counter)
    elif how == "method":
        net.compile(backend=counter)
    elif how == "submodule":
        net.body = torch.compile(net.body, backend=counter)
    elif how == "function":
        call = torch.compile(lambda x: net(x), backend=counter, fullgraph=True)
    if warm:
        call(x)
    compiled = counter.frame_count
    for module in {net, call} if isinstance(call, nn.Module) else {net}:
        check_capture(module, call, x)
    assert counter.frame_count == compiled
    assert stance() == "default"
    call(x)
    # The code that was there before is used again, and hooks are not in it.
    assert counter.frame_count == (0 if how == "nothing" else 1)
    assert stance() == "default"


def test_captures_that_end_in_another_order_leave_compilation_as_it_was(net, x, counter):
    compiled = torch.compile(net, backend=counter)

    def features():
        with Capture(net, "a") as seen:
            while True:
                compiled(x)
                yield seen["a"]

    first, second = features(), features()
    next(first)
    next(second)
    first.close()
    assert torch.equal(next(second), net.a(x))
    assert stance() == "force_eager"
    second.close()
    assert stance() == "default"
    with pytest.raises(ValueError), Capture(net, "a"):
        raise ValueError
    assert stance() == "default"


def test_an_old_torch_that_cannot_run_compiled_code_eagerly_is_told(net, x, monkeypatch, counter):
    monkeypatch.delattr(torch.compiler, "set_stance")
    with Capture(net, "a"):
        pass
    for compiled in (torch.compile(net, backend=counter), nn.Sequential(torch.compile(net, backend=counter))):
        with (
            pytest.raises(FeatlensError, match=r"hooks inside compiled modules need torch 2\.6"),
            Capture(compiled, "**"),
        ):
            pass
        with pytest.raises(FeatlensError, match=r"hooks inside compiled modules need torch 2\.6"):
            sites(compiled, inputs=x)
    assert not net.a._forward_hooks


@pytest.fixture
def gloo(tmp_path):
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("gloo is not available")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_distributed_data_parallel(net, x, gloo):
    wrapped = nn.parallel.DistributedDataParallel(net)
    check_capture(wrapped, wrapped, x)
    outer = nn.Sequential(wrapped)
    assert [site.name for site in sites(outer, "**.b")] == ["0.b"]
    # Training goes on as before, also when a pass was ended in the middle.
    wrapped(x).sum().backward()
    alone = net.a.weight.grad.clone()
    with Capture(wrapped, "a", stop_after="a") as seen:
        assert seen.run(wrapped, x) is None
    net.zero_grad()
    wrapped(x).sum().backward()
    assert torch.equal(net.a.weight.grad, alone)


def test_data_parallel_over_several_devices_is_refused(net, x):
    wrapped = nn.DataParallel(net)
    wrapped.device_ids = []  # what it is without a GPU
    check_capture(wrapped, wrapped, x)
    wrapped.device_ids = [0, 1]
    for module in (wrapped, nn.Sequential(wrapped)):
        with pytest.raises(FeatlensError, match=r"DataParallel over 2 devices .* capture its \.module"):
            Capture(module, "**")


def test_checkpoint_wrappers_are_looked_through(net, x):
    wrapper = pytest.importorskip("torch.distributed.algorithms._checkpoint.checkpoint_wrapper")
    net.body = wrapper.checkpoint_wrapper(net.body)
    with Capture(net, ["**"]) as seen:
        net(x).sum().backward()
    assert list(seen) == NAMES


def test_scripted_modules_are_refused(net, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = [torch.jit.script(net), torch.jit.trace(net, x)]
    for scripted in made:
        with pytest.raises(
            FeatlensError, match="TorchScript runs no hooks of inner modules; capture the module"
        ):
            Capture(scripted, "**")
        mixed = nn.Sequential(nn.Linear(3, 3), scripted)
        with pytest.raises(
            FeatlensError, match="'1' is a TorchScript module, which takes no hooks; leave it out"
        ):
            Capture(mixed, "*")
        with Capture(mixed, "0") as seen:
            mixed(x)
        assert torch.equal(seen["0"], mixed[0](x))


def test_traced_graphs_are_modules_like_others(net, x):
    graph = torch.fx.symbolic_trace(net)
    with Capture(graph, "body.*") as seen:
        graph(x)
    assert list(seen) == ["body.0", "body.1"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models(net, x, dtype):
    net, x = net.to(dtype), x.to(dtype)
    plain = net(x)
    with Capture(net, "**") as seen:
        assert torch.equal(net(x), plain)
    assert all(value.dtype == dtype for value in seen.values())
    with Capture(net, "**", reduce="gap") as reduced:
        net(x)
    assert all(value.dtype == torch.float32 for value in reduced.values())
    assert all(torch.equal(reduced[name], seen[name].float()) for name in NAMES)
    dtypes = []
    with Capture(net, "a", reduce=lambda value: dtypes.append(value.dtype) or value.std(1)) as own:
        net(x)
    assert dtypes == [torch.float32] and own["a"].dtype == torch.float32


def test_a_reduction_of_ones_own_runs_outside_autocast(net, x):
    matrix = torch.randn(4, 2)
    with torch.autocast("cpu", torch.bfloat16):
        plain = net(x)
        with Capture(net, "a", reduce=lambda value: value @ matrix) as seen:
            assert torch.equal(net(x), plain)
        activation = net.a(x)
    assert activation.dtype == torch.bfloat16
    assert torch.equal(seen["a"], activation.detach().float() @ matrix)


def test_what_is_kept_in_inference_mode_can_be_trained_on(net, x):
    for reduce in (None, "gap", "flatten", "tokens", "project(2)", lambda value: value[:, :2]):
        with torch.inference_mode(), Capture(net, ["**"], reduce) as seen:
            net(x)
        assert seen.duplicates == {}
        assert not any(value.is_inference() for value in seen.values())
        assert not any(value.requires_grad for value in seen.values())
    probe = nn.Linear(2, 1)
    probe(seen["a"]).sum().backward()
    with Capture(net, "a") as expected:
        net(x)
    assert torch.equal(seen["a"], expected["a"][:, :2])


def test_in_inference_mode_an_in_place_operation_does_not_reach_what_is_kept(net, x):
    with torch.inference_mode(), Capture(net, ["body.0", "body.1"], reduce="flatten") as seen:
        net(x)
    assert seen["body.0"].min() < 0 and seen["body.1"].min() == 0


def test_a_reduction_that_draws_numbers_does_not_disturb_the_model(x):
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(3, 2))
    outputs = []
    for reduce in (None, lambda value: value + torch.rand_like(value), "project(2)"):
        torch.manual_seed(7)
        with Capture(net, "**", reduce):
            outputs.append(net(x))
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize(
    ("reduce", "message"),
    [
        (
            lambda value: value.relu_(),
            "the reduction of site 'a' changed its input, which the network still uses",
        ),
        (lambda value: [value], "the reduction of site 'a' gave a list; it has to return a tensor"),
    ],
)
def test_a_reduction_that_does_harm_is_refused(net, x, reduce, message):
    with pytest.raises(FeatlensError, match=message), Capture(net, "a", reduce):
        net(x)
    assert not net.a._forward_hooks


def test_an_attention_block_that_takes_a_fast_path_without_hooks():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    tokens = torch.randn(2, 5, 8)
    with torch.no_grad():
        plain = layer(tokens)
        with Capture(layer, ["linear1", "norm1"]) as seen:
            assert torch.allclose(layer(tokens), plain, atol=1e-6)
    assert list(seen) == ["norm1", "linear1"]


def test_modules_on_the_meta_device():
    with torch.device("meta"):
        net = Net()
        x = torch.zeros(2, 3)
    assert [site.shape for site in sites(net, "a", x)] == [(4,)]
    for reduce in ("gap", lambda value: value.sum(1)):
        with Capture(net, "a", reduce) as seen:
            net(x)
        assert seen["a"].device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_what_the_cpu_gives_and_keeps_its_random_state():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True)), torch.randn(4, 3, 16, 16)
    there = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True)).cuda()
    there.load_state_dict(net.state_dict())
    for reduce in ("gap", "grid(2)", "project(64)", "tokens", None):
        with torch.no_grad(), Capture(net, "**", reduce) as here:
            net(x)
        with torch.no_grad(), Capture(there, "**", reduce) as seen:
            there(x.cuda())
        for name, value in seen.items():
            assert value.is_cuda
            assert torch.allclose(value.cpu(), here[name], rtol=1e-3, atol=1e-3)
    state = torch.cuda.get_rng_state()
    with Capture(there, "**", lambda value: value + torch.rand_like(value)):
        there(x.cuda())
    sites(there, inputs=x.cuda())
    assert torch.equal(torch.cuda.get_rng_state(), state)
