"""The engine: what a loop calls so that it runs on any device, in any precision, in parts and processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from featlens.errors import UsageError
from featlens_trainers.engine.compiling import Compiled, check_backend
from featlens_trainers.engine.devices import check_precision
from featlens_trainers.engine.layout import follow_layout, to_channels_last
from featlens_trainers.engine.processes import Processes

__all__ = ["Engine", "frozen", "make_engine"]


@contextlib.contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Context in which no parameter of ``modules`` receives a gradient; those in inputs still flow."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


class Engine:
    """Where and how a loop runs; without arguments one process, float32, the whole batch at once.

    A loop draws all randomness for the whole batch, so that what an image meets depends on the seed alone;
    each process then works on its own :meth:`parts` of the batch, one after the other. Use as a context
    manager, or call :meth:`close` at the end.

    Parameters
    ----------
    device
        Of the networks; :func:`make_engine` also finds the GPU of each process.
    precision
        ``"float32"``, or ``"bfloat16"``: networks compute in it where that is safe; weights, optimisers,
        averages and losses stay float32.
    accumulate
        Parts that each process works through one after the other; memory falls, the result stays.
    compile
        Whether networks are compiled, or the backend of :func:`torch.compile` that does it.
    channels_last
        Whether convolutions have their channels last in memory, which most devices prefer.
    threads
        Threads of torch on the processor; as before after :meth:`close`.
    trackers
        Names of :class:`featlens_trainers.trackers.Trackers` that a run is to log to.
    processes
        All that train together; alone if None.

    Examples
    --------
    >>> import torch
    >>> network = torch.nn.Linear(1, 1, bias=False)
    >>> optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    >>> x = torch.tensor([[1.0], [3.0]])
    >>> engine = Engine(accumulate=2)
    >>> engine.parts(2)
    [slice(0, 1, None), slice(1, 2, None)]
    >>> before = network.weight.item()
    >>> engine.update(optimizer, (network(x[part]).mean() for part in engine.parts(2)))
    >>> round(before - network.weight.item(), 5)
    1.0
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        *,
        precision: str = "float32",
        accumulate: int = 1,
        compile: bool | str = False,
        channels_last: bool = False,
        threads: int | None = None,
        trackers: Sequence[str] = (),
        processes: Processes | None = None,
    ) -> None:
        for name, value in (("accumulate", accumulate), ("threads", threads)):
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")
        self.device = torch.device(device)
        check_precision(self.device, precision)
        self.precision = precision
        self.accumulate = accumulate
        self.backend = "inductor" if compile is True else (compile or None)
        if self.backend is not None:
            check_backend(self.backend)
        self.channels_last = channels_last
        self.trackers = tuple(trackers)
        self._processes = processes or Processes(device=self.device)
        self._threads_before = None if threads is None else torch.get_num_threads()
        if threads is not None:
            torch.set_num_threads(threads)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        """Give torch its threads back. A process group that was joined stays until the process ends."""
        if self._threads_before is not None:
            torch.set_num_threads(self._threads_before)
            self._threads_before = None

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return self._processes.rank

    @property
    def world(self) -> int:
        """Number of processes."""
        return self._processes.world

    @property
    def main(self) -> bool:
        """Whether this process writes files and draws progress."""
        return self.rank == 0

    def settings(self) -> dict[str, Any]:
        """What a run records of how it ran: plain values for JSON."""
        return {
            "device": str(self.device),
            "precision": self.precision,
            "processes": self.world,
            "accumulate": self.accumulate,
            "compile": self.backend,
            "channels_last": self.channels_last,
            "threads": torch.get_num_threads(),
        }

    def parts(self, batch: int) -> list[slice]:
        """Parts of a batch that this process works on, equal in size, in order.

        The mean over all parts of all processes of the mean over a part is the mean over the batch.
        """
        pieces = self.accumulate * self.world
        if batch % pieces:
            raise UsageError(_indivisible(batch, self.accumulate, self.world))
        size = batch // pieces
        first = self.rank * self.accumulate
        return [slice(start * size, (start + 1) * size) for start in range(first, first + self.accumulate)]

    def autocast(self) -> AbstractContextManager[object]:
        """Context in which networks compute in the engine's precision."""
        if self.precision == "float32":
            return contextlib.nullcontext()
        # In torch before its pull request 165068 the cache keeps what a call without gradients has cast, and
        # hands it, without a graph, to a call that needs one.
        return torch.autocast(self.device.type, dtype=torch.bfloat16, cache_enabled=False)

    def faster(self, network: nn.Module) -> nn.Module:
        """What to call instead of ``network``, of the same parameters: compiled where that was asked for.

        Also lays the weights out with the channels last where that was asked for.
        """
        if self.channels_last:
            to_channels_last(network)
        return network if self.backend is None else Compiled(network, self.backend)

    def update(self, optimizer: torch.optim.Optimizer, losses: Iterable[Tensor]) -> None:
        """One optimiser step on the mean of ``losses``, one for each of this process's parts.

        ``losses`` is consumed lazily: the graph of a part is freed before the next is built. Gradients are
        averaged over the processes after the last part.
        """
        optimizer.zero_grad(set_to_none=True)
        parts = 0
        for loss in losses:
            loss.backward()  # type: ignore[no-untyped-call]
            parts += 1
        if not parts:
            raise UsageError("an update needs the loss of at least one part, got none")
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        self._processes.average(trained, parts)
        if self.channels_last or self.backend is not None:
            follow_layout(optimizer)
        optimizer.step()

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a tensor over the processes, without gradient if there are several."""
        return self._processes.mean(value)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true on any process; the answer is the same on all."""
        return self._processes.any(flag)

    def tell(self, value: Any) -> Any:
        """``value`` of the main process, on all processes; anything that JSON can hold."""
        return self._processes.tell(value)

    def wait(self) -> None:
        """Wait, for days if need be, until all processes are here: after work that only one does."""
        self._processes.wait()

    def synchronise(self, *modules: nn.Module) -> None:
        """Give all processes the parameters and buffers of the main process."""
        for module in modules:
            self._processes.broadcast([*module.parameters(), *module.buffers()])


def make_engine(
    device: torch.device | str = "cpu",
    precision: str = "float32",
    accumulate: int = 1,
    compile: bool | str = False,
    channels_last: bool = False,
    threads: int | None = None,
    trackers: Sequence[str] = (),
) -> Engine:
    """Engine on a device of this machine, with all processes that torchrun or accelerate launch started.

    Parameters are those of :class:`Engine`; ``device`` is ``"cpu"``, ``"cuda"`` (each process takes its own
    GPU), ``"cuda:1"`` or ``"mps"``.

    >>> with make_engine(accumulate=2) as engine:
    ...     engine.settings()["device"], engine.world, engine.parts(4)
    ('cpu', 1, [slice(0, 2, None), slice(2, 4, None)])
    """
    if trackers:
        from featlens_trainers.trackers import check_trackers

        check_trackers(trackers)
    processes = Processes.join(device)
    return Engine(
        processes.device,
        precision=precision,
        accumulate=accumulate,
        compile=compile,
        channels_last=channels_last,
        threads=threads,
        trackers=trackers,
        processes=processes,
    )


def _indivisible(batch: int, accumulate: int, world: int) -> str:
    pieces = accumulate * world
    below, above = batch // pieces * pieces, -(-batch // pieces) * pieces
    sizes = " or ".join(str(size) for size in (below, above) if size)
    ways = [f"a batch of {sizes}"]
    if batch % world == 0 and accumulate > 1:
        share = batch // world
        fitting = [many for many in range(1, share + 1) if share % many == 0]
        near = sorted(sorted(fitting, key=lambda many: abs(many - accumulate))[:2])
        ways.append(f"--accumulate {' or '.join(map(str, near))}")
    shape = " x ".join(
        words
        for words, many in ((f"{world} processes", world), (f"{accumulate} parts each", accumulate))
        if many > 1
    )
    return f"a batch of {batch} does not divide into {shape}; choose {', or '.join(ways)}"
