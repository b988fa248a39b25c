"""Crystals from and to ASE, pymatgen and PyTorch Geometric, which are imported when they are used.

``pip install "pyfast-kernels[crystal]"`` brings the first two, ``"pyfast-kernels[pyg]"`` the last.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyfast import _C
from pyfast.crystal._arguments import Crystals as Crystals
from pyfast.crystal._arguments import type_of
from pyfast.crystal._graph import PeriodicGraph

_PACKAGES = ("ase", "pymatgen", "torch_geometric")  # whose structures can be iterated, too
_FIELDS = ("frac_coords", "atom_types", "lengths", "angles", "num_atoms")


def __dir__() -> list[str]:
    public = (n for n, x in globals().items() if getattr(x, "__module__", None) == __name__)
    return sorted(n for n in public if not n.startswith("_"))


def from_ase(atoms: Any, dtype: torch.dtype = torch.float64) -> Crystals:
    """Crystals from ASE's Atoms.

    Args:
        atoms: one ``ase.Atoms``, or an iterable of them.
        dtype: float64, or float32 to round.

    Returns:
        ``Crystals``, positions as they are, outside of the cell too. They hold nothing else: charges, momenta,
        constraints and ``info`` stay behind.

    Raises:
        TypeError: if something else than Atoms is given.

    Example:
        >>> from ase.build import bulk
        >>> from pyfast.crystal import convert
        >>> convert.from_ase([bulk("Cu"), bulk("NaCl", "rocksalt", a=5.64)]).numbers
        tensor([29, 11, 17])

    Source: https://ase-lib.org/ase/atoms.html.
    """
    from ase import Atoms

    many = _several(atoms, Atoms, "atoms")
    return _crystals(
        [a.positions for a in many],
        [a.cell.array for a in many],
        [a.numbers for a in many],
        [a.pbc for a in many],
        dtype,
    )


def to_ase(crystals: Crystals) -> list[Any]:
    """ASE's Atoms of each structure.

    Args:
        crystals: of any device and dtype.

    Returns:
        A list of ``ase.Atoms``.

    Raises:
        TypeError: if something else than Crystals is given.
        ImportError: without ASE.

    Example:
        >>> from ase.build import bulk
        >>> from pyfast.crystal import convert
        >>> bool(convert.to_ase(convert.from_ase(bulk("Cu")))[0] == bulk("Cu"))
        True

    Source: https://ase-lib.org/ase/atoms.html.
    """
    _check_crystals(crystals)
    from ase import Atoms

    return [
        Atoms(numbers=z.numpy(), positions=x.double().numpy(), cell=h.double().numpy(), pbc=p.numpy())
        for x, h, z, p in _each(crystals)
    ]


def from_pymatgen(structures: Any, dtype: torch.dtype = torch.float64) -> Crystals:
    """Crystals from pymatgen's Structures.

    Args:
        structures: one ``pymatgen.core.Structure``, ordered, or an iterable of them.
        dtype: float64, or float32 to round.

    Returns:
        ``Crystals``, positions as they are, outside of the cell too. Isotopes become their elements; oxidation states
        and properties of sites stay behind.

    Raises:
        TypeError: if something else than a Structure is given.
        ValueError: if a site is occupied in part, by several elements, or by none.

    Example:
        >>> from pymatgen.core import Lattice, Structure
        >>> from pyfast.crystal import convert
        >>> salt = Structure.from_spacegroup(225, Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
        >>> convert.from_pymatgen(salt).natoms
        tensor([8])

    Source: https://pymatgen.org/pymatgen.core.html.
    """
    many = _ordered(structures)
    return _crystals(
        [s.cart_coords for s in many],
        [s.lattice.matrix for s in many],
        [s.atomic_numbers for s in many],
        [s.pbc for s in many],
        dtype,
    )


def to_pymatgen(crystals: Crystals) -> list[Any]:
    """The pymatgen Structure of each structure.

    Args:
        crystals: of any device and dtype.

    Returns:
        A list of ``pymatgen.core.Structure``, positions as they are, outside of the cell too.

    Raises:
        TypeError: if something else than Crystals is given.
        ValueError: if a cell has no volume, which pymatgen's must have along axes that do not repeat, too.
        ImportError: without pymatgen.

    Example:
        >>> from ase.build import bulk
        >>> from pyfast.crystal import convert
        >>> convert.to_pymatgen(convert.from_ase(bulk("Cu")))[0].formula
        'Cu1'

    Source: https://pymatgen.org/pymatgen.core.html.
    """
    _check_crystals(crystals)
    from pymatgen.core.lattice import Lattice
    from pymatgen.core.structure import Structure

    for k, h in enumerate(crystals.cell):
        if not torch.linalg.det(h.double()).abs() > 0:
            raise ValueError(f"crystals must have cells with a volume, got {h.tolist()} for structure {k}")
    return [
        Structure(
            Lattice(h.double().numpy(), pbc=tuple(p.tolist())),
            z.tolist(),
            x.double().numpy(),
            coords_are_cartesian=True,
        )
        for x, h, z, p in _each(crystals)
    ]


def from_pyg(data: Any, dtype: torch.dtype = torch.float64) -> tuple[Crystals, PeriodicGraph | None]:
    """Crystals, and the graph if there is one, from PyTorch Geometric's Data with the fields of CDVAE.

    Args:
        data: ``torch_geometric.data.Data`` or a ``Batch`` of them, or anything with the fields: frac_coords (N, 3),
            atom_types (N,), lengths (B, 3) Å, angles (B, 3) degrees, num_atoms (B,); with a graph edge_index (2, E) and
            to_jimages (E, 3), in any order.
        dtype: float64, or float32 to round.

    Returns:
        ``Crystals`` whose first vector lies in the plane of x and z and whose third along z, and a ``PeriodicGraph``
        in its own order of edges, or None.

    Raises:
        TypeError: if a field is missing.
        ValueError: if lengths and angles make no cell, shapes do not fit each other, or an index is out of bounds.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from pyfast.crystal import convert
        >>> fields = dict(lengths=torch.full((1, 3), 3.6), angles=torch.full((1, 3), 90.0), num_atoms=torch.tensor([1]))
        >>> data = SimpleNamespace(frac_coords=torch.zeros(1, 3), atom_types=torch.tensor([29]), **fields)
        >>> convert.from_pyg(data)[0].cell.shape
        torch.Size([1, 3, 3])

    Source: Xie et al., 2022, https://arxiv.org/abs/2110.06197, whose data sets have these fields.
    """
    missing = [name for name in _FIELDS if getattr(data, name, None) is None]
    if missing:
        hint = (
            "; torch_geometric.data.Batch.from_data_list makes one of several"
            if isinstance(data, (list, tuple))
            else ""
        )
        got = f"{type(data).__name__} without {', '.join(missing)}"
        raise TypeError(f"data must have the fields {', '.join(_FIELDS)}, got {got}{hint}")
    natoms = torch.as_tensor(data.num_atoms).reshape(-1).long()
    lengths, angles = (torch.as_tensor(x).reshape(-1, 3).double() for x in (data.lengths, data.angles))
    frac, n = data.frac_coords.double(), int(natoms.sum())
    for name, x, shape in (
        ("frac_coords", frac, (n, 3)),
        ("atom_types", data.atom_types, (n,)),
        ("lengths", lengths, (len(natoms), 3)),
        ("angles", angles, (len(natoms), 3)),
    ):
        if x.shape != shape:
            raise ValueError(f"{name} must have shape {shape} to match num_atoms, got {tuple(x.shape)}")
    cell = _cell(lengths, angles)
    structure = torch.repeat_interleave(natoms)
    positions = torch.einsum("ni,nij->nj", frac, cell[structure])
    pbc = torch.ones(len(natoms), 3, dtype=torch.bool)
    crystals = Crystals(positions.to(dtype), cell.to(dtype), natoms, data.atom_types.long(), pbc)
    edge_index = getattr(data, "edge_index", None)
    if edge_index is None:
        return crystals, None
    shift = getattr(data, "to_jimages", None)
    if shift is None:
        raise TypeError(f"data must have the field to_jimages with edge_index, got {type(data).__name__} without")
    if edge_index.dim() != 2 or len(edge_index) != 2 or shift.shape != (edge_index.shape[1], 3):
        got = f"{tuple(edge_index.shape)} and {tuple(shift.shape)}"
        raise ValueError(f"edge_index and to_jimages must have shapes (2, E) and (E, 3), got {got}")
    if (shift != shift.int()).any():
        raise ValueError("to_jimages must be whole numbers that fit int32, got others")
    return crystals, _graph(crystals, edge_index.long(), shift.long())


def to_pyg(crystals: Crystals, graph: PeriodicGraph | None = None) -> list[Any]:
    """PyTorch Geometric's Data of each structure, with the fields of CDVAE.

    Args:
        crystals: right-handed, as lengths and angles tell nothing else.
        graph: of these crystals, without padding.

    Returns:
        A list of ``torch_geometric.data.Data`` with frac_coords (n, 3) float32, atom_types (n,), lengths (1, 3),
        angles (1, 3) float32, num_atoms and num_nodes, and of a graph edge_index (2, e), to_jimages (e, 3), num_bonds:
        what ``torch_geometric.data.Batch.from_data_list`` joins.

    Raises:
        TypeError: if something else than Crystals is given.
        ValueError: if a structure is left-handed or does not repeat along all axes, or the graph is of others.
        ImportError: without torch_geometric.

    Example:
        With torch_geometric installed::

            copper = crystal.convert.from_ase(ase.build.bulk("Cu"))
            graph = crystal.crystal_nn_graph(copper)
            batch = torch_geometric.data.Batch.from_data_list(crystal.convert.to_pyg(copper, graph))

    Source: Xie et al., 2022, https://arxiv.org/abs/2110.06197, whose data sets have these fields.
    """
    _check_crystals(crystals)
    from torch_geometric.data import Data

    ends = torch.nn.functional.pad(crystals.natoms.cumsum(0), (1, 0))
    if graph is not None and not torch.equal(graph.atom_ptr.cpu().long(), ends.cpu()):
        raise ValueError(f"graph must be of these crystals, got one of atoms from {graph.atom_ptr.tolist()} on")
    found = []
    edges = [0] * (len(crystals.natoms) + 1) if graph is None else graph.edge_ptr.tolist()
    first = 0
    for k, (x, h, z, p) in enumerate(_each(crystals)):
        h = h.double()
        if not p.all():
            raise ValueError(f"crystals must repeat along all axes, got pbc {p.tolist()} for structure {k}")
        if not torch.linalg.det(h) > 0:
            raise ValueError(f"crystals must be right-handed, got {h.tolist()} for structure {k}")
        frac = torch.linalg.solve(h, x.double(), left=False)
        lengths = h.norm(dim=1)
        unit = h / lengths[:, None]
        cosines = torch.stack([unit[1] @ unit[2], unit[0] @ unit[2], unit[0] @ unit[1]])
        angles = torch.rad2deg(torch.arccos(cosines.clamp(-1, 1)))
        data = Data(frac_coords=frac.float(), atom_types=z, num_atoms=len(x), num_nodes=len(x))
        data.lengths, data.angles = lengths[None].float(), angles[None].float()
        if graph is not None:
            mine = slice(edges[k], edges[k + 1])
            data.edge_index, data.to_jimages = graph.edge_index[:, mine].cpu() - first, graph.shift[mine].cpu().long()
            data.num_bonds = edges[k + 1] - edges[k]
        found.append(data)
        first += len(x)
    return found


def read(path: Any, index: Any = ":", dtype: torch.dtype = torch.float64) -> Crystals:
    """Crystals from a file of any format that ASE reads: CIF, POSCAR, extended XYZ.

    Args:
        path: of the file.
        index: which structures of the file, as ``ase.io.read`` takes it.
        dtype: float64, or float32 to round.

    Returns:
        ``Crystals``.

    Raises:
        ImportError: without ASE.

    Example:
        >>> import tempfile
        >>> import ase.build
        >>> from pyfast.crystal import convert
        >>> with tempfile.NamedTemporaryFile(suffix=".xyz") as file:
        ...     ase.build.bulk("Cu").write(file.name)
        ...     print(convert.read(file.name).numbers)
        tensor([29])

    Source: https://ase-lib.org/ase/io/io.html.
    """
    from ase.io import read

    return from_ase(read(path, index), dtype)


def chemistry(structures: Any) -> tuple[Tensor, Tensor]:
    """What CrystalNN's weights know of chemistry, from pymatgen's tables.

    Args:
        structures: one ``pymatgen.core.Structure``, ordered, or an iterable of them; with oxidation states, ionic radii
            are used.

    Returns:
        Electronegativity (N,), Pauling's, NaN where there is none; and radius (N, 2) Å: of the ion and of the covalent
        atom, each 0 where it is not known. Both float64, as ``crystal_nn_graph`` takes them.

    Raises:
        TypeError: if something else than a Structure is given.
        ValueError: if a site is occupied in part, by several elements, or by none.

    Example:
        >>> from pymatgen.core import Lattice, Structure
        >>> from pyfast.crystal import convert
        >>> electronegativity, radius = convert.chemistry(Structure(Lattice.cubic(3), ["Po"], [[0, 0, 0]]))
        >>> electronegativity
        tensor([2.], dtype=torch.float64)

    Source: https://pymatgen.org/pymatgen.analysis.html#pymatgen.analysis.local_env.CrystalNN.
    """
    import warnings

    from pymatgen.core import local_env

    sites = [site for s in _ordered(structures) for site in s]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are no oxidation states, or no electronegativity
        chi = [float(site.specie.X) for site in sites]
        radius = [[float(f(s) or 0) for f in (local_env._get_radius, local_env._get_default_radius)] for s in sites]
    return torch.tensor(chi, dtype=torch.float64), torch.tensor(radius, dtype=torch.float64).reshape(-1, 2)


def _ordered(structures: Any) -> list[Any]:
    """Structures of pymatgen, with one element to a site."""
    from pymatgen.core.structure import IStructure

    many = _several(structures, IStructure, "structures")
    for k, s in enumerate(many):
        if not s.is_ordered or not all(hasattr(site.specie, "Z") and 0 < site.specie.Z < 200 for site in s):
            raise ValueError(f"structures must be ordered, one element to a site, got {s.formula} as structure {k}")
    return many


def _several(given: Any, kind: type, name: str) -> list[Any]:
    many = [given] if isinstance(given, kind) else list(given) if isinstance(given, Iterable) else [given]
    for one in many:
        if not isinstance(one, kind):
            whole = isinstance(given, (Tensor, Crystals)) or type(given).__module__.partition(".")[0] in _PACKAGES
            got, expected = type_of(given if whole else one), kind.__name__.removeprefix("I")
            raise TypeError(f"{name} must be {expected} or several of them, got {got}")
    return many


def _check_crystals(crystals: object) -> None:
    if not isinstance(crystals, Crystals):
        raise TypeError(f"crystals must be Crystals, got {type_of(crystals)}")


def _crystals(
    positions: Sequence[Any], cells: Sequence[Any], numbers: Sequence[Any], pbc: Sequence[Any], dtype: torch.dtype
) -> Crystals:
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    x = [torch.tensor(p, dtype=torch.float64).reshape(-1, 3) for p in positions]
    h = [torch.tensor(c, dtype=torch.float64).reshape(1, 3, 3) for c in cells]
    z = [torch.tensor(n, dtype=torch.int64).reshape(-1) for n in numbers]
    p = [torch.tensor([bool(b) for b in axes]).reshape(1, 3) for axes in pbc]
    return Crystals(
        torch.cat([torch.zeros(0, 3, dtype=torch.float64), *x]).to(dtype),
        torch.cat([torch.zeros(0, 3, 3, dtype=torch.float64), *h]).to(dtype),
        torch.tensor([len(a) for a in x], dtype=torch.int64),
        torch.cat([torch.zeros(0, dtype=torch.int64), *z]),
        torch.cat([torch.zeros(0, 3, dtype=torch.bool), *p]),
    )


def _each(crystals: Crystals) -> Iterable[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Positions, cell, numbers and pbc of each structure, on the CPU."""
    x, h, natoms, z, p = (t.detach().cpu() for t in crystals)
    return zip(x.split(natoms.tolist()), h, z.split(natoms.tolist()), p, strict=True)


def _cell(lengths: Tensor, angles: Tensor) -> Tensor:
    """(B, 3, 3) from lengths and angles as pymatgen sets it up: c along z, a in the plane of x and z."""
    cos, sin = torch.deg2rad(angles).cos(), torch.deg2rad(angles).sin()
    (ca, cb, cg), (sa, sb, _) = cos.unbind(1), sin.unbind(1)
    across = (ca * cb - cg) / (sa * sb)  # cosine of the reciprocal gamma
    good = (lengths > 0).all(1) & (across.abs() < 1) & lengths.isfinite().all(1)
    if not good.all():
        k = int((~good).nonzero()[0])
        raise ValueError(
            f"lengths and angles must make a cell, got {lengths[k].tolist()} and {angles[k].tolist()} for structure {k}"
        )
    zero = torch.zeros_like(across)
    a = torch.stack([sb, zero, cb], 1) * lengths[:, :1]
    b = torch.stack([-sa * across, sa * (1 - across * across).sqrt(), ca], 1) * lengths[:, 1:2]
    c = torch.stack([zero, zero, torch.ones_like(zero)], 1) * lengths[:, 2:]
    return torch.stack([a, b, c], 1)


def _graph(crystals: Crystals, edge_index: Tensor, shift: Tensor) -> PeriodicGraph:
    """The graph of edges in any order."""
    n, natoms = len(crystals.positions), crystals.natoms
    structure = torch.repeat_interleave(natoms)
    if edge_index.numel() and not (edge_index.min() >= 0 and edge_index.max() < n):
        raise ValueError(f"edge_index must lie in [0, {n}), got {edge_index.min()} to {edge_index.max()}")
    if (structure[edge_index[0]] != structure[edge_index[1]]).any():
        raise ValueError("edge_index must join atoms of one structure, got an edge from one to another")
    key = torch.cat([edge_index.flip(0), shift.T])  # target, source, shift
    order = torch.arange(key.shape[1])
    for column in key.flip(0):
        order = order[column[order].argsort(stable=True)]
    target, source, *_ = key[:, order]
    shift = shift[order]
    count = torch.bincount(target, minlength=n)
    ptr = torch.nn.functional.pad(count.cumsum(0), (1, 0))
    atom_ptr = torch.nn.functional.pad(natoms.cumsum(0), (1, 0))
    reverse = torch.empty_like(source)
    narrow = shift.int().contiguous()
    _C.crystal.reverse(ptr, source.contiguous(), narrow, reverse)
    x, h = crystals.positions.double(), crystals.cell.double()[structure[target]]
    s = shift.double()
    offset = (s[:, :1] * h[:, 0] + s[:, 1:2] * h[:, 1]) + s[:, 2:] * h[:, 2]
    a, b, c = ((x[source] - x[target]) + offset).unbind(1)
    distance = ((a * a + b * b) + c * c).sqrt().to(crystals.positions.dtype)
    status = torch.zeros(len(natoms), dtype=torch.int32)
    return PeriodicGraph(torch.stack([source, target]), narrow, distance, reverse, ptr, ptr[atom_ptr], atom_ptr, status)
