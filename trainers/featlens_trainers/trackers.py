"""Trackers: TensorBoard and Weights & Biases, through accelerate, beside ``stats.jsonl``.

Nothing is sent anywhere: W&B runs offline unless the environment variable ``WANDB_MODE`` says otherwise.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featlens.errors import UsageError, choices_hint

if TYPE_CHECKING:
    from featlens_trainers.engine import Engine

__all__ = ["TRACKERS", "Trackers", "check_trackers", "trackers_of"]

TRACKERS = ("tensorboard", "wandb")


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker that is unknown or not installed."""
    for name in names:
        if name not in TRACKERS:
            raise UsageError(f"unknown tracker {name!r}: {choices_hint(name, TRACKERS)}")
    if not names:
        return
    from accelerate.tracking import get_available_trackers  # type: ignore[import-untyped]

    there = [str(kind) for kind in get_available_trackers()]
    for name in names:
        if name not in there:
            raise UsageError(f"tracker {name}: not installed here; run pip install {name}, or leave it out")


class Trackers:
    """Trackers of one run; what ``stats.jsonl`` gets, they get; close at the end, or use in a with block.

    Parameters
    ----------
    names
        Of :data:`TRACKERS`; none is fine.
    folder
        Of the run. TensorBoard writes into ``tensorboard/`` in it, W&B into ``wandb/``.
    config
        Settings, shown beside the curves.
    images
        Images seen when this session starts: a resumed run goes on behind them, and TensorBoard hides what
        the interrupted session had logged beyond.
    """

    def __init__(
        self,
        names: Sequence[str],
        folder: os.PathLike[str] | str,
        config: Mapping[str, Any],
        images: int = 0,
    ) -> None:
        check_trackers(names)
        self._open: list[Any] = []
        if not names:
            return
        from accelerate import PartialState  # type: ignore[import-untyped]

        if not PartialState._shared_state:
            # accelerate's trackers ask it whether they are on the main process; no device is needed for that.
            PartialState(cpu=True)
        for name in dict.fromkeys(names):
            tracker = _made(name, Path(folder), images)
            self._open.append(tracker)
            if images == 0:
                tracker.store_init_configuration(dict(_flat(config)))

    def log(self, images: int, values: Mapping[str, Any]) -> None:
        """Log numbers by name after ``images`` images; a nested table becomes names with slashes."""
        numbers = {name: value for name, value in _flat(values) if isinstance(value, (int, float))}
        for tracker in self._open:
            tracker.log(numbers, step=images)

    def close(self) -> None:
        """Write what is held back."""
        while self._open:
            self._open.pop().finish()

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()


def trackers_of(
    engine: Engine, folder: os.PathLike[str] | str, config: Mapping[str, Any], images: int = 0
) -> Trackers:
    """Trackers that ``engine`` names on the main process, none on the others."""
    return Trackers(engine.trackers if engine.main else (), folder, config, images)


def _made(name: str, folder: Path, images: int) -> Any:
    from accelerate import tracking

    if name == "tensorboard":
        made = tracking.TensorBoardTracker("tensorboard", folder, purge_step=images + 1 if images else None)
    else:
        made = tracking.WandBTracker(
            "featlens",
            dir=str(folder),
            name=folder.name,
            # The same run after a resume, and another for another folder.
            id=hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16],
            resume="allow",
            mode=os.environ.get("WANDB_MODE", "offline"),
        )
    made.start()
    return made


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Entries of a nested mapping, names joined by slashes; lists as text, None left out."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        elif value is not None:
            yield f"{prefix}{name}", value if isinstance(value, (bool, int, float, str)) else str(value)
