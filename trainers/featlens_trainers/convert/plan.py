"""A conversion from what is at one path to a new folder: recognised, checked, then done."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featlens.errors import UsageError, choices_hint
from featlens_trainers.convert.edm import read_edm
from featlens_trainers.convert.folders import (
    DEFAULT_SIGMA_INIT,
    Converted,
    new_folder,
    read_diffusers_folder,
    require_free,
    write_diffusers_folder,
    write_run_folder,
)
from featlens_trainers.convert.names import recognise
from featlens_trainers.runs import newest_snapshot, read_run
from featlens_trainers.snapshots import load_denoiser

__all__ = ["FORMS", "Conversion", "plan_conversion"]

FORMS = {"run": write_run_folder, "diffusers": write_diffusers_folder}
"""What can be written, by the name of the form."""


@dataclass(frozen=True)
class Conversion:
    """What is to be converted to what.

    Attributes
    ----------
    source, out
        Where it is and where it goes.
    found
        What it is: ``edm``, ``run`` or ``diffusers``.
    form
        What it becomes: ``run`` or ``diffusers``.
    force
        Whether an earlier conversion at ``out`` is replaced.
    converted
        The network, which is read already.
    """

    source: Path
    out: Path
    found: str
    form: str
    force: bool
    converted: Converted

    def facts(self) -> dict[str, Any]:
        """What is converted to what, and the digest of the weights, as JSON."""
        return {
            "in": str(self.source),
            "found": self.found,
            "out": str(self.out),
            "form": self.form,
            **self.converted.facts(),
            "origin": dict(self.converted.origin),
        }

    def write(self) -> list[str]:
        """Write the folder, whole or not at all; the files in it."""
        with new_folder(self.out, self.force) as folder:
            return FORMS[self.form](folder, self.converted)


def plan_conversion(
    source: Path | str,
    out: Path | str,
    form: str | None = None,
    sigma_init: float | None = None,
    force: bool = False,
) -> Conversion:
    """The conversion of what is at ``source`` into the folder ``out``; nothing is written yet.

    Parameters
    ----------
    source
        A ``.pkl`` of EDM, a run or snapshot of ours, or a folder that a conversion wrote.
    out
        Folder to make.
    form
        ``run`` or ``diffusers``; None for the one that the source is not (``run`` for a ``.pkl``).
    sigma_init
        Noise level from which a one-step generator starts, instead of what the source says; a ``.pkl`` for
        which it is given is taken for a student.
    force
        Replace ``out`` if it is an earlier conversion.

    Raises
    ------
    UsageError
        The source is nothing that can be converted, or ``out`` is taken.
    FeatlensError
        The source is damaged or holds another network.

    Examples
    --------
    >>> import tempfile
    >>> from featlens_trainers import UNetConfig, build_denoiser
    >>> from featlens_trainers.snapshots import save_denoiser
    >>> folder = Path(tempfile.mkdtemp())
    >>> save_denoiser(folder / "ema.safetensors", build_denoiser(UNetConfig(channels=8), 0.5, seed=0))
    >>> plan = plan_conversion(folder, folder / "for-diffusers")
    >>> plan.found, plan.form, plan.converted.kind
    ('run', 'diffusers', 'teacher')
    >>> plan.write()[0]
    'model_index.json'
    """
    source, out = Path(source), Path(out)
    if sigma_init is not None and not 0 < sigma_init < math.inf:
        raise UsageError(f"sigma_init: expected a number above 0 such as 2.5, got {sigma_init}")
    found = recognise(source)
    form = form or ("diffusers" if found == "run" else "run")
    if form not in FORMS:
        raise UsageError(f"form: unknown {form!r}: {choices_hint(form, FORMS)}")
    if form == found:
        other = next(name for name in FORMS if name != form)
        raise UsageError(f"{source} is a {found} already; to convert it choose {other}, or copy the folder")
    if (
        out.exists()
        and source.exists()
        and (out.samefile(source) or out.resolve() in source.resolve().parents)
    ):
        raise UsageError(f"{out} holds what is to be converted; choose another name")
    require_free(out, force)
    return Conversion(source, out, found, form, force, _read(source, found, sigma_init))


def _read(source: Path, found: str, sigma_init: float | None) -> Converted:
    if found == "edm":
        released = read_edm(source)
        kind = "teacher" if sigma_init is None else "student"
        start = DEFAULT_SIGMA_INIT if sigma_init is None else sigma_init
        return Converted(released.denoiser(), kind, start, released.origin)
    if found == "diffusers":
        read = read_diffusers_folder(source)
        return Converted(read.denoiser, read.kind, sigma_init or read.sigma_init, read.origin)
    folder = source if source.is_dir() else source.parent
    record = read_run(folder) or read_run(folder.parent.parent) or {}
    path = source
    if source.is_dir():
        path = source / "ema.safetensors"
        path = path if path.is_file() else newest_snapshot(source)
    denoiser, about = load_denoiser(path)
    origin = {"format": "featlens run", "file": source.name, "snapshot": path.parent.name}
    start = sigma_init or float(about.get("sigma_init", DEFAULT_SIGMA_INIT))
    return Converted(denoiser, str(record.get("kind", "teacher")), start, origin)
