"""The manifest: where every tensor of a network came from, with digests to check it by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featlens.errors import FeatlensError

__all__ = ["Manifest", "TensorOrigin", "tensor_digest"]

_AT_ONCE = 2**24


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 (first 16 hex digits) over shape, dtype and bytes of one tensor, without any name.

    >>> tensor_digest(torch.zeros(2)) == tensor_digest(torch.zeros(2)) != tensor_digest(torch.zeros(2, 1))
    True
    """
    digest = hashlib.sha256(f"{tuple(tensor.shape)}|{tensor.dtype}|".encode())
    flat = tensor.detach().reshape(-1)
    for part in torch.split(flat, _AT_ONCE):
        digest.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class TensorOrigin:
    """Where one tensor came from.

    Attributes
    ----------
    origin
        In words: ``"random"``, ``"teacher"``, ``"teacher, permuted"``, ``"runs/x, interpolated 0.5"``.
    digest
        :func:`tensor_digest` of the tensor as it was set.
    rule
        ``match`` of the rule that decided, None where no rule named the tensor.
    source, source_digest
        Name or path of the source, and the digest of the tensor that was read there; None without source.
        A tensor that was taken over unchanged has the same digest twice.
    """

    origin: str
    digest: str
    rule: str | None = None
    source: str | None = None
    source_digest: str | None = None


@dataclass(frozen=True)
class Manifest:
    """Origin of every tensor by its name, and the seed of what was drawn."""

    seed: int
    tensors: Mapping[str, TensorOrigin]

    def origins(self) -> dict[str, str]:
        """Origin of every tensor, in words."""
        return {name: entry.origin for name, entry in self.tensors.items()}

    def counts(self) -> dict[str, int]:
        """Number of tensors of each origin."""
        out: dict[str, int] = {}
        for entry in self.tensors.values():
            out[entry.origin] = out.get(entry.origin, 0) + 1
        return out

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        entries = {
            name: {key: value for key, value in asdict(entry).items() if value is not None}
            for name, entry in self.tensors.items()
        }
        return {"seed": self.seed, "tensors": entries}

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Manifest:
        """Manifest from what :meth:`to_dict` gave."""
        seed, tensors = mapping.get("seed"), mapping.get("tensors")
        if not isinstance(seed, int) or not isinstance(tensors, Mapping):
            raise FeatlensError("a manifest needs 'seed' and 'tensors'; expected what Manifest.to_dict gives")
        known = set(TensorOrigin.__dataclass_fields__)
        for name, entry in tensors.items():
            if (
                not isinstance(entry, Mapping)
                or not {"origin", "digest"} <= set(entry) <= known
                or not all(isinstance(value, str) for value in entry.values())
            ):
                raise FeatlensError(
                    f"the manifest's entry of {name!r} is {entry!r}; expected text for origin and digest, "
                    "and where they apply for rule, source and source_digest"
                )
        return cls(seed, {name: TensorOrigin(**entry) for name, entry in tensors.items()})

    def verify(self, module: nn.Module) -> None:
        """Check that ``module`` holds exactly the tensors that are described.

        Raises
        ------
        FeatlensError
            With the first tensors that are missing, not described, or other than they were.
        """
        held = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
        wrong = [f"{name} is missing" for name in self.tensors if name not in held]
        wrong += [f"{name} is not described" for name in held if name not in self.tensors]
        for name, entry in self.tensors.items():
            if name in held and tensor_digest(held[name]) != entry.digest:
                wrong.append(f"{name} has other values")
        if wrong:
            raise FeatlensError(
                f"the network is not the one of the manifest: {len(wrong)} tensors differ, "
                f"first {'; '.join(wrong[:3])}; compare it before training starts, or with its own manifest"
            )
