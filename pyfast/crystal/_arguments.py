"""What the functions that make graphs are given, checked and brought into one form."""

import os
from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyfast.crystal._graph import PeriodicGraph, Status

MOST_EDGES = 2**31 - 1
BAD = int(Status.NOT_FINITE | Status.SINGULAR_CELL | Status.TOO_FAR | Status.TOO_MANY)


class Crystals(NamedTuple):
    """A batch of periodic structures, side by side: what ``radius_graph`` and its like are given.

    Attributes:
        positions: (N, 3) Å, inside the cell or not.
        cell: (B, 3, 3) Å, rows are the vectors of each cell.
        natoms: (B,) int64, the number of atoms of each structure.
        numbers: (N,) int64, atomic numbers.
        pbc: (B, 3) bool, whether a structure repeats along each of its vectors.
    """

    positions: Tensor
    cell: Tensor
    natoms: Tensor
    numbers: Tensor
    pbc: Tensor

    def __repr__(self) -> str:
        return f"Crystals({len(self.natoms):,} structures, {len(self.positions):,} atoms, {self.positions.dtype})"

    def to(self, *args: Any, **kwargs: Any) -> "Crystals":
        """The crystals on another device, positions and cells in another dtype.

        Args:
            args: a device, a dtype or both, as ``torch.Tensor.to`` takes them.
            kwargs: ``device``, ``dtype``, ``non_blocking``, ``copy``.

        Returns:
            Crystals whose positions and cells are as asked, and other tensors on that device.

        Raises:
            TypeError: if the dtype is not float32 or float64.
        """
        positions, cell = self.positions.to(*args, **kwargs), self.cell.to(*args, **kwargs)
        if positions.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"dtype must be float32 or float64, got {positions.dtype}")
        rest = {name: kwargs[name] for name in ("non_blocking", "copy") if name in kwargs}
        natoms, numbers, pbc = (x.to(positions.device, **rest) for x in (self.natoms, self.numbers, self.pbc))
        return Crystals(positions, cell, natoms, numbers, pbc)


class Batch(NamedTuple):
    """Structures side by side, as the operators take them."""

    positions: Tensor
    cell: Tensor
    pbc: Tensor
    atom_ptr: Tensor
    cutoff: Tensor
    kinds: Tensor


def batch_of(
    positions: Tensor | Crystals,
    cell: Tensor | None,
    cutoff: float | Tensor | None,
    natoms: Tensor | Sequence[int] | None,
    batch: Tensor | None,
    pbc: bool | Sequence[bool] | Tensor | None,
    species: Tensor | None,
    look: bool,
) -> Batch:
    """The batch of these arguments, without derivatives; ``look`` whether values that may lie on a GPU are checked."""
    if isinstance(positions, Crystals):
        for name, given in (("cell", cell), ("natoms", natoms), ("batch", batch), ("pbc", pbc)):
            if given is not None:
                hint = "; name what follows Crystals, as in cutoff=5.0 or k=12" if name == "cell" else ""
                got = "a tensor" if isinstance(given, Tensor) else type_of(given)
                raise ValueError(f"{name} must be None with Crystals, which have their own, got {got}{hint}")
        positions, cell, natoms, _, pbc = positions
    pbc = True if pbc is None else pbc
    if not isinstance(positions, Tensor) or positions.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"positions must be a float32 or float64 tensor, got {_type(positions)}")
    if positions.dim() != 2 or positions.shape[1] != 3:
        raise ValueError(f"positions must have shape (N, 3), got {tuple(positions.shape)}")
    if natoms is not None and batch is not None:
        raise ValueError("natoms must be None where batch is given, got both")
    if cell is None:
        size = 1 if natoms is None and batch is None else len(natoms) if natoms is not None else -1
        if size < 0:
            raise ValueError(
                "cell must be given with batch, which does not tell how many structures there are, got None"
            )
        cell = positions.new_zeros(size, 3, 3)
        if isinstance(pbc, bool) and pbc:
            raise ValueError("cell must be given for periodic structures, got None; or pass pbc=False")
    if not isinstance(cell, Tensor) or cell.dtype != positions.dtype:
        raise TypeError(f"cell must be a tensor of positions' dtype, {positions.dtype}, got {_type(cell)}")
    if cell.dim() == 2 and (batch is not None or _of_one(natoms)):
        cell = cell[None]
    if cell.dim() != 3 or cell.shape[1:] != (3, 3):
        raise ValueError(f"cell must have shape (B, 3, 3), rows its vectors, got {tuple(cell.shape)}")
    _same_device("cell", cell, positions)
    B, N = cell.shape[0], positions.shape[0]
    return Batch(
        positions.detach().contiguous(),
        cell.detach().to(torch.float64).contiguous(),
        _pbc(pbc, B, positions),
        _atom_ptr(natoms, batch, B, N, positions, look),
        *_cutoff(cutoff, species, B, N, positions, look),
    )


def _of_one(natoms: Tensor | Sequence[int] | None) -> bool:
    """Whether these are the atoms of one structure."""
    if isinstance(natoms, Tensor):
        return natoms.shape == (1,)
    return natoms is None or (hasattr(natoms, "__len__") and len(natoms) == 1)


def _pbc(pbc: bool | Sequence[bool] | Tensor, B: int, positions: Tensor) -> Tensor:
    if not isinstance(pbc, Tensor):
        try:
            pbc = torch.tensor(pbc, device=positions.device)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"pbc must be bool, got {pbc!r}") from None
    if pbc.dtype != torch.bool:
        raise TypeError(f"pbc must be bool, got {pbc.dtype}")
    _same_device("pbc", pbc, positions)
    if pbc.shape not in ((), (3,), (B, 3)):
        raise ValueError(f"pbc must be one bool, or of shape (3,) or ({B}, 3), got {tuple(pbc.shape)}")
    return pbc.expand(B, 3).contiguous()


def _atom_ptr(
    natoms: Tensor | Sequence[int] | None, batch: Tensor | None, B: int, N: int, positions: Tensor, look: bool
) -> Tensor:
    device = positions.device
    if batch is not None:
        _check_indices("batch", batch)
        if batch.shape != (N,):
            raise ValueError(f"batch must have shape ({N},) to match positions, got {tuple(batch.shape)}")
        _same_device("batch", batch, positions)
        if look and N:
            if (batch[1:] < batch[:-1]).any():
                raise ValueError("batch must not fall, as atoms of a structure stand side by side, got it unsorted")
            if batch[0] < 0 or batch[-1] >= B:
                raise ValueError(f"batch must lie in [0, {B}) to match cell, got {batch[0]} to {batch[-1]}")
        return torch.searchsorted(batch.contiguous(), torch.arange(B + 1, dtype=batch.dtype, device=device))
    if natoms is None:
        if B != 1:
            raise ValueError(f"natoms or batch must be given for {B} structures, got neither")
        return torch.tensor([0, N], device=device)
    if not isinstance(natoms, Tensor):
        natoms = torch.tensor(natoms, device=device)
        natoms = natoms if natoms.numel() else natoms.long()  # of no structures
    _check_indices("natoms", natoms)
    if natoms.shape != (B,):
        raise ValueError(f"natoms must have shape ({B},) to match cell, got {tuple(natoms.shape)}")
    _same_device("natoms", natoms, positions)
    if look:
        if (natoms < 0).any():
            raise ValueError(f"natoms must not be negative, got {natoms.min()}")
        if natoms.sum() != N:
            raise ValueError(f"natoms must add up to the {N} rows of positions, got {natoms.sum()}")
    return torch.nn.functional.pad(natoms.to(torch.int64).cumsum(0), (1, 0))


def _cutoff(
    cutoff: float | Tensor | None, species: Tensor | None, B: int, N: int, positions: Tensor, look: bool
) -> tuple[Tensor, Tensor]:
    device = positions.device
    if cutoff is None:
        raise ValueError("cutoff must be given, got None")
    if isinstance(cutoff, Tensor):
        _same_device("cutoff", cutoff, positions)
        if cutoff.is_complex() or cutoff.dtype == torch.bool:
            raise TypeError(f"cutoff must be of real numbers, got {cutoff.dtype}")
    elif isinstance(cutoff, bool) or not isinstance(cutoff, Real):
        raise TypeError(f"cutoff must be a number or a tensor, got {_type(cutoff)}")
    elif not 0 <= cutoff < float("inf"):
        raise ValueError(f"cutoff must be finite and not negative, got {cutoff}")
    radius = torch.as_tensor(cutoff, dtype=torch.float64, device=device).detach()
    if look and isinstance(cutoff, Tensor) and not ((radius >= 0) & radius.isfinite()).all():
        bad = radius[~((radius >= 0) & radius.isfinite())][0]
        raise ValueError(f"cutoff must be finite and not negative, got {bad}")
    if species is None:
        if radius.shape not in ((), (B,)):
            raise ValueError(
                f"cutoff must be one number or of shape ({B},), or (K, K) with species, got {tuple(radius.shape)}"
            )
        return radius.expand(B).contiguous(), torch.empty(0, dtype=torch.int64, device=device)
    if radius.dim() != 2 or radius.shape[0] != radius.shape[1] or not radius.numel():
        raise ValueError(f"cutoff must have shape (K, K) where species is given, got {tuple(radius.shape)}")
    _check_indices("species", species)
    if species.shape != (N,):
        raise ValueError(f"species must have shape ({N},) to match positions, got {tuple(species.shape)}")
    _same_device("species", species, positions)
    if look:
        if (radius != radius.T).any():
            raise ValueError("cutoff must be symmetric in its two species, got a matrix that is not")
        if N and (species.min() < 0 or species.max() >= len(radius)):
            raise ValueError(
                f"species must lie in [0, {len(radius)}) to match cutoff, got {species.min()} to {species.max()}"
            )
    return radius.contiguous(), species.to(torch.int64).contiguous()


def refuse(batch: Batch, status: Tensor, max_edges: int) -> None:
    """Raises what a count found wrong, naming the first structure that it is wrong with."""
    bad = status & BAD
    if not bad.any():
        return
    b = int(bad.nonzero()[0])
    what, where = Status(int(bad[b])), f"in structure {b}" if len(status) > 1 else ""
    first, last = batch.atom_ptr[b : b + 2].tolist()
    x, cell = batch.positions[first:last], batch.cell[b]
    if Status.NOT_FINITE in what:
        if not x.isfinite().all():
            atom, axis = (~x.isfinite()).nonzero()[0].tolist()
            place = f"at atom {atom}, axis {'xyz'[axis]} {where}"
            raise ValueError(f"positions must be finite, got {x[atom, axis]} {place}".rstrip())
        repeated = cell[batch.pbc[b]]
        if not (repeated.norm(dim=1) <= 1e150).all():
            vector = int(batch.pbc[b].nonzero()[int((~(repeated.norm(dim=1) <= 1e150)).nonzero()[0])])
            raise ValueError(
                f"cell must be finite, got {cell[vector].tolist()} as vector {'abc'[vector]} {where}".rstrip()
            )
        raise ValueError(f"cutoff must be finite and not negative, got {batch.cutoff[b]} {where}".rstrip())
    if Status.SINGULAR_CELL in what:
        axes = "".join(name for name, periodic in zip("abc", batch.pbc[b].tolist(), strict=True) if periodic)
        raise ValueError(f"cell must have independent vectors along {axes}, got {cell.tolist()} {where}".rstrip())
    if Status.TOO_FAR in what:
        far, radius = x.abs().max() if len(x) else 0, batch.cutoff.max()
        if radius > far:
            raise ValueError(f"cutoff must reach less than 2**30 cells, got {radius} {where}".rstrip())
        raise ValueError(f"positions must lie within 2**30 cells of the origin, got {far} {where}".rstrip())
    too_many(batch, max_edges, b)


def too_many(batch: Batch, max_edges: int, structure: int | None = None, edges: int | None = None) -> None:
    """Raises for a list that no memory should hold."""
    got = f"{edges}" if edges is not None else f"far more in structure {structure}"
    raise MemoryError(
        f"cutoff must give at most max_edges = {max_edges} edges, got {got} with {batch.cutoff.max().item()}"
    )


def memory() -> int:
    """Bytes of memory that there are."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_tensor(
    name: str, x: Tensor, shape: tuple[int | str, ...], like: Tensor | None = None, other: str = "x"
) -> None:
    """Refuse what is no float tensor of this shape, or not of the dtype and device of another.

    Sizes that are named may be anything; a first size "..." is any number of them.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {_type(x)}")
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} must be float32 or float64, got {x.dtype}")
    fixed = shape[1:] if shape[:1] == ("...",) else shape
    sizes = x.shape[len(x.shape) - len(fixed) :] if fixed is not shape and x.dim() >= len(fixed) else x.shape
    if len(sizes) != len(fixed) or any(isinstance(n, int) and m != n for m, n in zip(sizes, fixed, strict=True)):
        want = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name} must have shape ({want}), got {tuple(x.shape)}")
    if like is not None and x.dtype != like.dtype:
        raise TypeError(f"{name} must have the dtype of {other}, {like.dtype}, got {x.dtype}")
    if like is not None and x.device != like.device:
        raise TypeError(f"{name} must be on the device of {other}, {like.device}, got {x.device}")


def check_values(name: str, x: Tensor, hint: str = "") -> None:
    """Refuse what has a shape alone where its values decide the size of the answer."""
    if x.device.type == "meta":
        raise TypeError(f"{name} must have values, as they decide how much is found, got a meta tensor{hint}")


def check_is_graph(graph: object) -> None:
    """Refuse what is no graph, before anything is read from it."""
    if not isinstance(graph, PeriodicGraph):
        hint = "; its field graph is one" if isinstance(getattr(graph, "graph", None), PeriodicGraph) else ""
        raise TypeError(f"graph must be a PeriodicGraph, got {type_of(graph)}{hint}")


def check_graph(graph: PeriodicGraph, like: Tensor, other: str) -> None:
    """Refuse a graph on another device than a tensor, or with shifts of another dtype."""
    if graph.ptr.device != like.device:
        raise TypeError(f"graph must be on the device of {other}, {like.device}, got {graph.ptr.device}")
    if graph.shift.dtype != torch.int32:
        raise TypeError(f"graph.shift must be torch.int32, got {graph.shift.dtype}")


def _check_indices(name: str, x: object) -> None:
    if not isinstance(x, Tensor) or x.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name} must be int64 or int32, got {_type(x)}")


def _same_device(name: str, x: Tensor, positions: Tensor) -> None:
    if x.device != positions.device:
        raise TypeError(f"{name} must be on positions' device, {positions.device}, got {x.device}")


def _type(x: object) -> str:
    """The dtype of a tensor, or what is there instead of one."""
    return f"{x.dtype}" if isinstance(x, Tensor) else type_of(x)


def type_of(x: object) -> str:
    """What an argument is that should have been something else, and for objects of other packages what helps."""
    of, what = type(x), type(x).__name__
    if isinstance(x, (list, tuple)) and x and not hasattr(x, "_fields"):
        of, what = type(x[0]), f"{what} of {type(x[0]).__name__}"
        if all(isinstance(one, Crystals) for one in x):
            return f"{what}; crystal.join makes one Crystals of several"
    return what + _HELP.get(of.__module__.partition(".")[0], "")


_HELP = {
    "numpy": "; torch.from_numpy makes it a tensor",
    "ase": "; crystal.convert.from_ase makes Crystals of Atoms",
    "pymatgen": "; crystal.convert.from_pymatgen makes Crystals of Structures",
    "torch_geometric": "; crystal.convert.from_pyg makes Crystals of Data",
}
