"""What a pruning did, read from the device only when asked."""

import struct
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from pyfast.prune.mask import BitMask

_LAST = {False: 0x7FFFFFFF, True: 0x7FFFFFFFFFFFFFFF}


@dataclass(frozen=True)
class LayerReport:
    """One tensor of a pruning.

    Args:
        name: its name in the targets.
        shape: its shape.
        size: number of weights.
        kept: number of them kept.
        sparsity: share of them pruned; 0 if there are none.
        threshold: magnitude of the smallest weight that the layer had to keep; infinite if no weight had to stay.
        binds: whether the layer's minimum kept weights below the threshold of the others.
        minimum: the number of weights that had to stay.
    """

    name: str
    shape: tuple[int, ...]
    size: int
    kept: int
    sparsity: float
    threshold: float
    binds: bool
    minimum: int


@dataclass(frozen=True, eq=False, repr=False)
class PruneResult:
    """What a pruning did. Printing it gives a table.

    Every number is read from the device when it is first asked for: until then, a pruning on CUDA runs on unwatched.

    Args:
        mask: which weights were kept.
        amount: number of weights asked to be pruned; with ``ties`` other than "first" see ``pruned``.
        tied: names of tensors whose memory lies inside another one's, with the name that counted for both.
        minimum: per tensor, the number of weights that had to stay.
        table: (tensors + 1, 4), int64, as the kernel left it.
        wide: whether magnitudes were compared as float64, not float32.
        uses: multiplications per weight of each tensor for one example input, with those of all other layers; None
            when ``flops`` was not asked for.

    Example:
        >>> import torch, pyfast
        >>> weights = {"a": torch.tensor([4.0, 1.0]), "b": torch.tensor([3.0, 2.0])}
        >>> result = pyfast.prune.global_magnitude_mask(weights, 2)
        >>> result.threshold, result.kept, [layer.kept for layer in result.layers]
        (3.0, 2, [1, 1])
        >>> print(result)
        pruned 2 of 4 weights (50.00%), threshold 3
        layer  shape  weights  kept  sparsity  threshold  minimum
        a      2            2     1    50.00%          3
        b      2            2     1    50.00%          3
    """

    mask: BitMask
    amount: int
    tied: dict[str, str]
    minimum: tuple[int, ...]
    table: Tensor = field(repr=False)
    wide: bool
    uses: tuple[tuple[int, ...], int] | None = None

    @cached_property
    def _rows(self) -> list[list[int]]:
        rows: list[list[int]] = self.table.tolist()
        return rows

    def _magnitude(self, key: int) -> float:
        if key == _LAST[self.wide]:
            return float("inf")
        return float(struct.unpack("<d" if self.wide else "<f", key.to_bytes(8 if self.wide else 4, "little"))[0])

    @property
    def threshold(self) -> float:
        """Smallest magnitude kept for its own sake; infinite if minima alone decided, or nothing was kept."""
        return self._magnitude(self._rows[-1][1])

    @property
    def kept(self) -> int:
        """Number of weights kept."""
        return self._rows[-1][0]

    @property
    def pruned(self) -> int:
        """Number of weights pruned."""
        return self.mask.size - self.kept

    @property
    def sparsity(self) -> float:
        """Share of weights pruned; 0 if there are none."""
        return self.pruned / self.mask.size if self.mask.size else 0.0

    @property
    def passes(self) -> int:
        """Times that the weights were read to find the threshold."""
        return self._rows[-1][3]

    @cached_property
    def layers(self) -> list[LayerReport]:
        """One report per tensor, in order."""
        sizes = [torch.Size(shape).numel() for shape in self.mask.shapes]
        described = zip(self.mask.names, self.mask.shapes, sizes, self._rows[:-1], self.minimum, strict=True)
        return [
            LayerReport(name, shape, n, kept, (n - kept) / n if n else 0.0, self._magnitude(key), bool(binds), minimum)
            for name, shape, n, (kept, key, binds, _), minimum in described
        ]

    @property
    def flops_sparsity(self) -> float | None:
        """Share of multiplications saved, of all in Linear and Conv layers; None unless ``flops`` was given."""
        if self.uses is None:
            return None
        per_weight, others = self.uses
        dense = sum(u * layer.size for u, layer in zip(per_weight, self.layers, strict=True)) + others
        left = sum(u * layer.kept for u, layer in zip(per_weight, self.layers, strict=True)) + others
        return 1 - left / dense if dense else 0.0

    def __repr__(self) -> str:
        return f"PruneResult(amount={self.amount}, mask={self.mask!r})"

    def __str__(self) -> str:
        head = f"pruned {self.pruned:,} of {self.mask.size:,} weights ({self.sparsity:.2%})"
        head += f", threshold {self.threshold:.4g}"
        if self.flops_sparsity is not None:
            head += f", {self.flops_sparsity:.2%} of multiplications"
        rows = [("layer", "shape", "weights", "kept", "sparsity", "threshold", "minimum")]
        for layer in self.layers:
            shape = "x".join(map(str, layer.shape)) or "scalar"
            minimum = f"{layer.minimum:,}{' binds' if layer.binds else ''}" if layer.minimum else ""
            threshold = f"{layer.threshold:.4g}"
            rows.append(
                (layer.name, shape, f"{layer.size:,}", f"{layer.kept:,}", f"{layer.sparsity:.2%}", threshold, minimum)
            )
        width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(
                cell.ljust(w) if i in (0, 1) else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(row, width, strict=True))
            )
            for row in rows
        ]
        lines += [f"{name} is counted as {other}" for name, other in self.tied.items()]
        return "\n".join([head, *(line.rstrip() for line in lines)])
