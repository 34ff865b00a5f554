"""The engine in one process: parts, precision, layout, threads, and what it refuses."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from featlens.errors import FeatlensError, UsageError
from featlens_trainers.ema import ema_copy, ema_update
from featlens_trainers.engine import Engine, devices, frozen, make_engine, memory_advice


def small_network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1),
            nn.GroupNorm(2, 8),
            nn.SiLU(),
            nn.Conv2d(8, 4, 1),
            nn.Conv2d(4, 2, 3, padding=1),
        )


def batch_of(step: int, batch: int = 8) -> Tensor:
    return torch.randn(batch, 2, 6, 6, generator=torch.Generator().manual_seed(step))


def trained(engine: Engine, steps: int = 4, kind: str = "sgd") -> nn.Module:
    """A denoiser of nothing: enough of a loop to compare engines by."""
    network = small_network()
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(network.parameters(), lr=0.3, momentum=0.9)
        if kind == "sgd"
        else torch.optim.Adam(network.parameters(), lr=1e-2, fused=True)
    )
    fast = engine.faster(network)
    for step in range(steps):
        x = batch_of(step)

        def loss(part: slice, x: Tensor = x) -> Tensor:
            with engine.autocast():
                out = fast(x[part])
            return ((out.float() - x[part].flip(1)) ** 2).flatten(1).sum(1).mean() / 10

        engine.update(optimizer, (loss(part) for part in engine.parts(len(x))))
    return network


def distance(one: nn.Module, other: nn.Module) -> float:
    """Largest difference of weights, relative to the largest weight of the tensor."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max() / b.detach().abs().max()) for a, b in pairs)


def test_plain_engine_is_a_plain_step_bit_for_bit() -> None:
    network = small_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.3, momentum=0.9)
    for step in range(4):
        x = batch_of(step)
        optimizer.zero_grad()
        (((network(x) - x.flip(1)) ** 2).flatten(1).sum(1).mean() / 10).backward()
        optimizer.step()
    assert distance(trained(Engine()), network) == 0.0


def test_default_engine_imports_no_accelerate() -> None:
    code = (
        "import sys; from featlens_trainers.engine import make_engine; make_engine(); "
        "print([m for m in sys.modules if m.split('.')[0] in ('accelerate', 'tensorboard', 'torch._dynamo')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# --- parts --------------------------------------------------------------------------------------------------


def test_parts_tile_the_batch_in_order() -> None:
    assert Engine().parts(6) == [slice(0, 6)]
    assert Engine(accumulate=3).parts(6) == [slice(0, 2), slice(2, 4), slice(4, 6)]


@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_accumulation_gives_the_step_of_the_whole_batch(accumulate: int, kind: str) -> None:
    whole = trained(Engine(), kind=kind)
    assert distance(trained(Engine(accumulate=accumulate), kind=kind), whole) < 2e-5


def test_parts_are_built_one_after_the_other() -> None:
    weight = nn.Parameter(torch.ones(()))
    order: list[str] = []

    def losses():
        for part in range(3):
            order.append(f"build {part}")
            loss = weight * (part + 1)
            loss.register_hook(lambda _, part=part: order.append(f"backward {part}"))
            yield loss

    Engine(accumulate=3).update(torch.optim.SGD([weight], lr=1.0), losses())
    assert order == ["build 0", "backward 0", "build 1", "backward 1", "build 2", "backward 2"]
    assert float(weight.detach()) == pytest.approx(1 - 2)


def test_parameters_without_gradient_stay_without() -> None:
    used, unused = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))
    optimizer = torch.optim.Adam([used, unused], lr=0.1)
    Engine(accumulate=2).update(optimizer, (used * x for x in (1.0, 2.0)))
    assert unused.grad is None and unused not in optimizer.state


def test_update_needs_a_loss() -> None:
    with pytest.raises(UsageError, match="at least one part"):
        Engine().update(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0), [])


@pytest.mark.parametrize(
    ("batch", "accumulate", "advice"),
    [
        (50, 4, "a batch of 50 does not divide into 4 parts each; choose a batch of 48 or 52, or "
                "--accumulate 2 or 5"),
        (3, 4, "a batch of 3 does not divide into 4 parts each; choose a batch of 4, or --accumulate 1 or 3"),
    ],
)  # fmt: skip
def test_batch_that_does_not_divide_names_what_would(batch: int, accumulate: int, advice: str) -> None:
    with pytest.raises(UsageError) as caught:
        Engine(accumulate=accumulate).parts(batch)
    assert str(caught.value) == advice


def test_losses_are_averaged_not_summed() -> None:
    weight = nn.Parameter(torch.zeros(()))
    engine = Engine(accumulate=4)
    engine.update(torch.optim.SGD([weight], lr=1.0), (weight * x for x in (1.0, 2.0, 3.0, 6.0)))
    assert math.isclose(float(weight.detach()), -3.0)


# --- leaks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_no_gradient_reaches_the_frozen_network(accumulate: int) -> None:
    engine = Engine(accumulate=accumulate)
    student, critic = small_network(0), small_network(1)
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (student, critic)]
    kept = copy.deepcopy(critic.state_dict())
    x = batch_of(0)

    def student_loss(part: slice) -> Tensor:
        with frozen(critic):
            return critic(student(x[part])).square().mean()

    engine.update(optimizers[0], (student_loss(part) for part in engine.parts(8)))
    assert all(p.grad is None and p.requires_grad for p in critic.parameters())
    assert all(torch.equal(value, kept[name]) for name, value in critic.state_dict().items())

    engine.update(optimizers[1], (critic(x[part]).square().mean() for part in engine.parts(8)))
    before = [p.grad.clone() for p in critic.parameters() if p.grad is not None]
    engine.update(optimizers[0], (student_loss(part) for part in engine.parts(8)))
    after = [p.grad for p in critic.parameters() if p.grad is not None]
    assert len(before) == len(list(critic.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_frozen_leaves_what_was_frozen_before() -> None:
    network = small_network()
    network[0].weight.requires_grad_(False)
    with pytest.raises(RuntimeError, match="inside"), frozen(network):
        assert not any(p.requires_grad for p in network.parameters())
        raise RuntimeError("inside")
    assert [name for name, p in network.named_parameters() if not p.requires_grad] == ["0.weight"]


# --- precision ----------------------------------------------------------------------------------------------


def test_bfloat16_computes_in_it_and_keeps_float32() -> None:
    engine = Engine(precision="bfloat16")
    network = small_network()
    with engine.autocast():
        assert network(batch_of(0)).dtype == torch.bfloat16
    after = trained(engine, kind="adam")
    average = ema_copy(after)
    ema_update(average, small_network(), 0.5)
    assert {p.dtype for p in (*after.parameters(), *average.parameters())} == {torch.float32}
    reference = trained(Engine(), kind="adam")
    # bfloat16 has 8 bits: not equal, but the same training.
    assert 1e-6 < distance(after, reference) < 0.1
    assert distance(reference, small_network()) > 0.05


def test_a_call_without_gradients_costs_no_gradient_of_the_next() -> None:
    engine, network = Engine(precision="bfloat16"), small_network()
    with engine.autocast():
        with torch.no_grad():
            network(batch_of(0))
        network(batch_of(0)).float().sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_precision_that_is_unknown_or_missing_is_refused(monkeypatch) -> None:
    with pytest.raises(UsageError, match="did you mean 'bfloat16'"):
        Engine(precision="bfloat")
    monkeypatch.setattr(devices, "_has_bfloat16", lambda device: False)
    with pytest.raises(UsageError, match="cpu does not compute in it; use --precision float32"):
        Engine(precision="bfloat16")


# --- layout -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_channels_last_changes_the_layout_alone(kind: str) -> None:
    network = trained(Engine(channels_last=True), kind=kind)
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert distance(network, trained(Engine(), kind=kind)) < 2e-5


def test_optimiser_state_from_before_follows_the_layout() -> None:
    """Fused Adam pairs elements by their place in memory, so a restored state must lie as its weights do."""

    def resumed(second: Engine) -> nn.Module:
        network = small_network()
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2, fused=True)
        for engine in (Engine(), second):
            engine.faster(network)
            for step in range(3):
                x = batch_of(step)
                engine.update(optimizer, [((network(x) - x.flip(1)) ** 2).sum(1).mean()])
        return network

    assert distance(resumed(Engine(channels_last=True)), resumed(Engine())) < 2e-5


def test_gradient_of_another_layout_is_laid_out_anew() -> None:
    """As inductor hands them out."""
    plain, other = nn.Parameter(torch.ones(4, 3, 2, 2)), nn.Parameter(torch.ones(4, 3, 2, 2))
    gradient = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    for weight, layout in ((plain, torch.contiguous_format), (other, torch.channels_last)):
        optimizer = torch.optim.Adam([weight], lr=0.1, fused=True)

        def losses(weight: nn.Parameter = weight, layout: torch.memory_format = layout):
            yield weight.sum()
            weight.grad = gradient.clone(memory_format=layout)

        Engine(compile="eager").update(optimizer, losses())
    assert torch.equal(plain, other)
    assert other.grad is not None and other.grad.stride() == other.stride()


# --- compile ------------------------------------------------------------------------------------------------


def test_compiled_network_is_the_network() -> None:
    engine = Engine(compile="aot_eager")
    network = small_network()
    fast = engine.faster(network)
    assert [id(p) for p in fast.parameters()] == [id(p) for p in network.parameters()]
    assert fast.network is network
    # What is not a call is the network's own.
    network.sigma_data = 0.5
    assert fast.sigma_data == 0.5
    assert not fast.eval().training and not network.training
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        fast.absent  # noqa: B018
    assert distance(trained(engine), trained(Engine())) < 2e-5
    torch._dynamo.reset()


def test_missing_compiler_is_a_warning(caplog) -> None:
    def broken(graph, inputs):
        raise RuntimeError("no working C++ compiler")

    engine = Engine(compile=True)
    engine.backend = broken
    network = trained(engine)
    assert distance(network, trained(Engine())) == 0.0
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("featlens")]
    assert len(lines) == 1 and "goes on without" in lines[0] and "no working C++ compiler" in lines[0]
    torch._dynamo.reset()


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'inductor'"):
        Engine(compile="inducter")


# --- threads, settings, memory ------------------------------------------------------------------------------


def test_threads_are_set_and_given_back() -> None:
    before = torch.get_num_threads()
    with make_engine(threads=before + 2) as engine:
        assert torch.get_num_threads() == before + 2
        assert engine.settings()["threads"] == before + 2
    assert torch.get_num_threads() == before
    with pytest.raises(ZeroDivisionError), make_engine(threads=before + 1):
        raise ZeroDivisionError
    assert torch.get_num_threads() == before
    for name in ("threads", "accumulate"):
        with pytest.raises(UsageError, match=f"{name} must be at least 1, got 0"):
            make_engine(**{name: 0})


def test_settings_are_plain() -> None:
    settings = Engine(precision="bfloat16", accumulate=2, channels_last=True).settings()
    assert json.loads(json.dumps(settings)) == settings
    assert settings["precision"] == "bfloat16" and settings["accumulate"] == 2 and settings["processes"] == 1
    assert settings["device"] == "cpu" and settings["compile"] is None and settings["channels_last"]


def test_one_process_agrees_with_itself() -> None:
    engine = Engine()
    assert engine.main and (engine.rank, engine.world) == (0, 1)
    assert engine.any(True) and not engine.any(False)
    assert engine.tell({"a": 1}) == {"a": 1}
    assert float(engine.mean(torch.tensor(2.0))) == 2.0
    engine.synchronise(small_network())
    engine.wait()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_names_the_knobs(error: Exception) -> None:
    engine = Engine(accumulate=2)
    weight = nn.Parameter(torch.ones(()))

    def losses():
        yield weight * 1
        raise error

    with pytest.raises(FeatlensError) as caught, memory_advice(64, engine):
        engine.update(torch.optim.SGD([weight], lr=1.0), losses())
    assert str(caught.value) == (
        "cpu ran out of memory with 32 images at once; give --accumulate 4 (16 at once, the same result), or "
        "--precision bfloat16, or a smaller network"
    )
    assert caught.value.__cause__ is error


def test_advice_gives_only_what_helps() -> None:
    engine = Engine(precision="bfloat16")
    with pytest.raises(FeatlensError, match="1 image at once; give a smaller"), memory_advice(1, engine):
        raise torch.OutOfMemoryError
    with pytest.raises(RuntimeError, match="something else"), memory_advice(1, Engine()):
        raise RuntimeError("something else")
