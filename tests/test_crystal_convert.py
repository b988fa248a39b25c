"""Crystals from and to ASE, pymatgen and PyTorch Geometric; lists that stand in for those of ASE and TorchSim."""

import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, graphene, molecule
from ase.io import write
from ase.neighborlist import neighbor_list as ase_neighbor_list

from pyfast import crystal
from pyfast.crystal import convert


def shaken():
    atoms = bulk("NaCl", "rocksalt", a=5.64) * (2, 1, 3)
    atoms.rattle(0.1, seed=1)
    atoms.positions[0] += 3 * atoms.cell[0] - 2 * atoms.cell[2]  # out of its cell
    return atoms


ATOMS = {
    "copper": bulk("Cu"),
    "silicon": bulk("Si", cubic=True),
    "magnesium": bulk("Mg"),
    "zincblende": bulk("ZnS", "zincblende", a=5.41),
    "salt": shaken(),
    "slab": fcc111("Pt", (2, 1, 3), vacuum=5.0),
    "sheet": graphene(),
    "water": molecule("H2O"),
    "left-handed": Atoms("HO", [[0, 0, 0], [1, 0.5, 0.2]], cell=[[0, 3, 0], [3, 0, 0.5], [0, 0.3, 4]], pbc=True),
    "nothing": Atoms(cell=np.eye(3), pbc=True),
}


@pytest.fixture
def pyg():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import is not for those who err on warnings
        import torch_geometric.data
        import torch_geometric.nn
    return torch_geometric


def rows(arrays):
    """Pairs as sorted tuples, floats rounded."""
    columns = (np.round(a, 8).reshape(len(a), -1 if len(a) else 0) + 0.0 for a in arrays)
    return sorted(map(tuple, np.concatenate(list(columns), 1).tolist()))


@pytest.mark.parametrize("name", ATOMS)
@pytest.mark.parametrize("cutoff", [2.9, 5.0])
def test_neighbor_list_is_ase_s(name, cutoff):
    atoms = ATOMS[name]
    got, want = crystal.neighbor_list("ijSdD", atoms, cutoff), ase_neighbor_list("ijSdD", atoms, cutoff)
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
    assert rows(got) == rows(want)
    np.testing.assert_array_equal(got[0], want[0])  # sorted by i, as ASE's


@pytest.mark.parametrize(
    "cutoff",
    [
        *({("Na", "Cl"): 3.0}, {("Na", "Na"): 4.2, (17, 11): 2.9}, {("H", "H"): 9.0}, [1.2, 1.6] * 6, np.full(12, 1.5)),
        *([0.0, 2.9] * 6, [-1.0, 2.9] * 6, np.float32(3.0)),
    ],
)
@pytest.mark.parametrize("own", [False, True])
def test_neighbor_list_takes_ase_s_cutoffs(cutoff, own):
    atoms = ATOMS["salt"]
    got = crystal.neighbor_list("ijSd", atoms, cutoff, self_interaction=own)
    assert rows(got) == rows(ase_neighbor_list("ijSd", atoms, cutoff, self_interaction=own))
    assert (np.diff(got[0]) >= 0).all()


@pytest.mark.filterwarnings("ignore:a cutoff of zero")
def test_neighbor_list_of_nothing():
    salt, none = ATOMS["salt"], type(ATOMS["salt"])()
    for atoms, cutoff in ((salt, 0.0), (none, 3.0)):
        got = crystal.neighbor_list("ijSd", atoms, cutoff, self_interaction=True)
        assert [len(a) for a in got] == [
            len(a) for a in ase_neighbor_list("ijSd", atoms, cutoff, self_interaction=True)
        ]
    assert len(crystal.neighbor_list("i", none, {("Na", "Cl"): 3.0})) == 0
    assert len(crystal.neighbor_list("i", salt, {})) == 0


@pytest.mark.parametrize(
    ("a", "cutoff", "error", "message"),
    [
        ([ATOMS["salt"]] * 2, 3.0, TypeError, "a must be one Atoms, got list of Atoms; crystal.convert.from_ase makes"),
        ("copper", 3.0, TypeError, "a must be one Atoms, got str$"),
        (crystal.Crystals(*5 * [None]), 3.0, TypeError, "got Crystals; crystal.convert.to_ase makes Atoms of Crystals"),
        (ATOMS["copper"], {("Cu", "Xy"): 3.0}, ValueError, "cutoff must be of elements that there are, got 'Xy'"),
        (ATOMS["nothing"], {("Cu", 999): 3.0}, ValueError, "cutoff must be of elements that there are, got 999"),
        (ATOMS["copper"], {"Cu": 3.0}, ValueError, "cutoff must have pairs of elements for keys, got 'Cu'"),
        (ATOMS["copper"], {("Cu",): 3.0}, ValueError, r"cutoff must have pairs of elements for keys, got \('Cu',\)"),
    ],
)
def test_neighbor_list_refuses_by_name(a, cutoff, error, message):
    with pytest.raises(error, match=message):
        crystal.neighbor_list("i", a, cutoff)


def test_neighbor_list_takes_tensors():
    salt = ATOMS["salt"]
    for cutoff in (torch.tensor(3.0), np.array(3.0), torch.full((len(salt),), 1.5)):
        np.testing.assert_array_equal(crystal.neighbor_list("i", salt, cutoff), crystal.neighbor_list("i", salt, 3.0))


def test_neighbor_list_of_one_letter_is_an_array():
    assert isinstance(crystal.neighbor_list("d", ATOMS["copper"], 3.0), np.ndarray)
    with pytest.raises(ValueError, match="quantities must be letters of 'ijdDS', got 'ix'"):
        crystal.neighbor_list("ix", ATOMS["copper"], 3.0)
    with pytest.raises(ValueError, match="cutoff must be a number, a mapping, or a radius of each atom"):
        crystal.neighbor_list("ij", ATOMS["copper"], [1.0, 2.0])


@pytest.mark.parametrize("own", [False, True])
def test_torch_sim_s_callable(own):
    names = ["copper", "salt", "slab", "left-handed"]
    c = convert.from_ase([ATOMS[n] for n in names])
    system = torch.repeat_interleave(c.natoms)
    cutoff = torch.tensor(4.0, dtype=torch.float64)
    mapping, structure, shift = crystal.torch_sim_neighbors(c.positions, c.cell, c.pbc, cutoff, system, own)
    assert torch.equal(structure, system[mapping[0]])
    assert shift.dtype == c.positions.dtype
    first = 0
    for k, n in enumerate(names):
        want = ase_neighbor_list("ijS", ATOMS[n], 4.0, self_interaction=own)
        mine = structure == k
        got = (*(mapping[:, mine] - first).numpy(), shift[mine].numpy())
        assert rows(got) == rows(want)
        first += len(ATOMS[n])


def test_ase_and_back():
    many = list(ATOMS.values())
    c = convert.from_ase(many)
    assert c.natoms.tolist() == [len(a) for a in many]
    for a, b in zip(many, convert.to_ase(c), strict=True):
        assert a == b
    assert convert.from_ase(many[0], torch.float32).positions.dtype == torch.float32
    assert convert.from_ase([]).cell.shape == (0, 3, 3)
    with pytest.raises(TypeError, match="atoms must be Atoms or several of them, got int"):
        convert.from_ase([1])
    with pytest.raises(TypeError, match=r"dtype must be torch.float32 or torch.float64, got torch.float16"):
        convert.from_ase(many, torch.float16)


def test_pymatgen_and_back():
    from pymatgen.core import Lattice, Structure

    periodic = [ATOMS[n] for n in ("copper", "silicon", "salt", "left-handed")]
    structures = convert.to_pymatgen(convert.from_ase(periodic))
    c = convert.from_pymatgen(structures)
    again = convert.from_ase(periodic)
    for a, b in zip(c, again, strict=True):
        if a.is_floating_point():
            torch.testing.assert_close(a, b)
        else:
            assert torch.equal(a, b)
    mixed = Structure(Lattice.cubic(3), [{"Fe": 0.5, "Co": 0.5}], [[0, 0, 0]])
    with pytest.raises(ValueError, match=r"structures must be ordered, one element to a site, got .* as structure 1"):
        convert.from_pymatgen([structures[0], mixed])
    wrong = [
        (
            convert.from_pymatgen,
            ATOMS["copper"],
            "structures must be Structure or several of them, got Atoms; .*from_ase",
        ),
        (
            convert.from_pymatgen,
            [ATOMS["copper"]],
            "structures must be Structure or several of them, got Atoms; .*from_",
        ),
        (convert.from_pymatgen, c, "structures must be Structure or several of them, got Crystals$"),
        (convert.from_ase, structures[0], "atoms must be Atoms or several of them, got Structure; .*from_pymatgen"),
        (convert.from_ase, structures, "atoms must be Atoms or several of them, got Structure; .*from_pymatgen"),
        (convert.from_ase, torch.zeros(2, 3), "atoms must be Atoms or several of them, got Tensor$"),
        (lambda s: crystal.neighbor_list("i", s, 3.0), structures[0], "a must be one Atoms, got Structure; .*to_ase"),
    ]
    for take, given, message in wrong:
        with pytest.raises(TypeError, match=message):
            take(given)
    dummy = Structure(Lattice.cubic(3), ["X"], [[0, 0, 0]])
    for bad in (mixed, dummy):
        for take in (convert.from_pymatgen, convert.chemistry):
            with pytest.raises(ValueError, match=r"structures must be ordered, one element to a site, got .* 0$"):
                take(bad)
    heavy = convert.chemistry(Structure(Lattice.cubic(3), ["Og"], [[0, 0, 0]]))
    assert heavy[0].isnan().all()
    assert not heavy[1].any()
    with pytest.raises(ValueError, match=r"crystals must have cells with a volume, got .* for structure 1"):
        convert.to_pymatgen(c._replace(cell=torch.cat([c.cell[:1], 0 * c.cell[1:]])))


def test_pyg_and_back(pyg):
    c = convert.from_ase([ATOMS[n] for n in ("silicon", "salt", "copper")])
    graph = crystal.crystal_nn_graph(c.positions, c.cell, natoms=c.natoms)
    data = convert.to_pyg(c, graph)
    assert [d.num_bonds for d in data] == graph.edge_ptr.diff().tolist()
    batch = pyg.data.Batch.from_data_list(data)
    assert torch.equal(batch.num_atoms, c.natoms)
    assert torch.equal(batch.batch, torch.repeat_interleave(c.natoms))
    crystals, again = convert.from_pyg(batch)
    assert torch.equal(crystals.numbers, c.numbers)
    for name in ("edge_index", "shift", "reverse", "ptr", "edge_ptr", "atom_ptr", "status"):
        assert torch.equal(getattr(again, name), getattr(graph, name)), name
    torch.testing.assert_close(again.distance, graph.distance, rtol=1e-5, atol=0)  # the fields are float32
    assert convert.from_pyg(convert.to_pyg(c)[0])[1] is None


def test_pyg_edges_in_any_order():
    """And the fields of CDVAE mean what they mean there: pos[row 0] - pos[row 1] + to_jimages @ cell is a bond."""
    fields = {"lengths": torch.tensor([[3.0, 4.0, 5.0]]), "angles": torch.tensor([[80.0, 95.0, 110.0]])}
    data = SimpleNamespace(
        frac_coords=torch.tensor([[0.1, 0.2, 0.3], [0.6, 0.7, 0.9]]),
        atom_types=torch.tensor([1, 8]),
        num_atoms=2,
        edge_index=torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0]]),
        to_jimages=torch.tensor([[0, 0, -1], [0, 0, 1], [0, 0, 0], [1, 0, 0]]),
        **fields,
    )
    crystals, graph = convert.from_pyg(data)
    assert graph.edge_index.tolist() == [[0, 1, 1, 0], [0, 0, 0, 1]]
    assert graph.shift.tolist() == [[1, 0, 0], [0, 0, -1], [0, 0, 0], [0, 0, 1]]
    assert graph.reverse.tolist() == [-1, 3, -1, 1]
    assert graph.ptr.tolist() == [0, 3, 4]
    x, h = crystals.positions, crystals.cell[0]
    torch.testing.assert_close(h.norm(dim=1), fields["lengths"][0].double())
    torch.testing.assert_close(graph.distance[3], (x[0] - x[1] + h[2]).norm())
    cosines = torch.stack([h[1] @ h[2], h[0] @ h[2], h[0] @ h[1]]) / torch.tensor([20.0, 15.0, 12.0]).double()
    torch.testing.assert_close(torch.rad2deg(cosines.arccos()), fields["angles"][0].double())
    data.edge_index, data.to_jimages = torch.tensor([[2], [0]]), torch.zeros(1, 3)
    with pytest.raises(ValueError, match=r"edge_index must lie in \[0, 2\), got 0 to 2"):
        convert.from_pyg(data)
    data.angles = torch.tensor([[10.0, 10.0, 170.0]])
    with pytest.raises(ValueError, match=r"lengths and angles must make a cell, got .* for structure 0"):
        convert.from_pyg(data)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_atoms": 1}, r"frac_coords must have shape \(1, 3\) to match num_atoms, got \(2, 3\)"),
        ({"atom_types": torch.ones(3)}, r"atom_types must have shape \(2,\) to match num_atoms, got \(3,\)"),
        ({"lengths": torch.ones(2, 3)}, r"lengths must have shape \(1, 3\) to match num_atoms, got \(2, 3\)"),
        ({"angles": torch.ones(2, 3)}, r"angles must have shape \(1, 3\) to match num_atoms, got \(2, 3\)"),
        ({"edge_index": torch.zeros(1, 2)}, r"edge_index and to_jimages must have shapes \(2, E\) and \(E, 3\)"),
        ({"to_jimages": torch.zeros(2, 3)}, r"edge_index and to_jimages must have shapes .* \(2, 1\) and \(2, 3\)"),
        ({"to_jimages": torch.full((1, 3), 2**40)}, "to_jimages must be whole numbers that fit int32, got others"),
        ({"to_jimages": torch.full((1, 3), 0.5)}, "to_jimages must be whole numbers that fit int32, got others"),
    ],
)
def test_pyg_fields_have_to_fit(fields, message):
    crystal_of_two = {
        "frac_coords": torch.rand(2, 3),
        "atom_types": torch.ones(2, dtype=torch.int64),
        "num_atoms": 2,
        "lengths": torch.full((1, 3), 3.0),
        "angles": torch.full((1, 3), 90.0),
        "edge_index": torch.tensor([[0], [1]]),
        "to_jimages": torch.zeros(1, 3),
    }
    assert convert.from_pyg(SimpleNamespace(**crystal_of_two))[1].num_edges == 1
    with pytest.raises(ValueError, match=message):
        convert.from_pyg(SimpleNamespace(**crystal_of_two | fields))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (SimpleNamespace(), "SimpleNamespace without frac_coords, atom_types, lengths, angles, num_atoms$"),
        (
            SimpleNamespace(num_atoms=1, angles=None),
            "SimpleNamespace without frac_coords, atom_types, lengths, angles$",
        ),
        ([SimpleNamespace()], "list without .*; torch_geometric.data.Batch.from_data_list makes one of several"),
    ],
)
def test_pyg_fields_have_to_be_there(data, message):
    rule = "data must have the fields frac_coords, atom_types, lengths, angles, num_atoms, got"
    with pytest.raises(TypeError, match=f"{rule} {message}"):
        convert.from_pyg(data)


def test_pyg_edges_want_their_images(pyg):
    (data,) = convert.to_pyg(convert.from_ase(ATOMS["copper"]))
    data.edge_index = torch.zeros(2, 1, dtype=torch.int64)
    with pytest.raises(TypeError, match="data must have the field to_jimages with edge_index, got Data without"):
        convert.from_pyg(data)


@pytest.mark.parametrize("take", [convert.to_ase, convert.to_pymatgen, convert.to_pyg])
@pytest.mark.parametrize(
    ("given", "got"),
    [
        (ATOMS["copper"], "Atoms; crystal.convert.from_ase makes Crystals of Atoms$"),
        (torch.zeros(2, 3), "Tensor$"),
        (
            [convert.from_ase(ATOMS["copper"])] * 2,
            "list of Crystals; crystal.join makes one Crystals of several",
        ),
    ],
)
def test_what_is_no_crystals_is_refused(take, given, got):
    with pytest.raises(TypeError, match=f"crystals must be Crystals, got {got}"):
        take(given)


def test_pyg_refuses_what_its_fields_cannot_tell(pyg):
    c, other = (convert.from_ase(ATOMS[n]) for n in ("copper", "salt"))
    graph = crystal.radius_graph(other.positions, other.cell, 3.0, natoms=other.natoms)
    with pytest.raises(ValueError, match="graph must be of these crystals"):
        convert.to_pyg(c, graph)
    with pytest.raises(ValueError, match="crystals must be right-handed"):
        convert.to_pyg(convert.from_ase(ATOMS["left-handed"]))
    with pytest.raises(ValueError, match="crystals must repeat along all axes"):
        convert.to_pyg(convert.from_ase(ATOMS["slab"]))


def test_only_public_names_are_listed():
    assert {"from_ase", "read", "to_pyg"} <= set(dir(convert))
    assert not {n for n in dir(convert) if n.startswith("_") or not getattr(convert, n).__module__.startswith("pyfast")}


def test_cif(tmp_path):
    write(tmp_path / "silicon.cif", ATOMS["silicon"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        c = convert.read(tmp_path / "silicon.cif")
    assert c.numbers.tolist() == [14] * 8
    assert crystal.crystal_nn_graph(c.positions, c.cell, natoms=c.natoms).num_edges == 32


def test_radius_graph_inside_a_model_of_pyg(pyg):
    """SchNet takes our graph where it would make one without periodicity: two cells have twice the energy of one."""
    torch.manual_seed(0)

    def energy(crystals):
        def interaction_graph(positions, batch):
            graph = crystal.radius_graph(positions, crystals.cell, 4.0, batch=batch, pbc=crystals.pbc)
            return graph.edge_index, graph.distance

        model.interaction_graph = interaction_graph
        return model(crystals.numbers, crystals.positions, torch.repeat_interleave(crystals.natoms))

    model = pyg.nn.models.SchNet(16, 16, 2, 10, cutoff=4.0, interaction_graph=lambda *_: None).double()
    unit = bulk("NaCl", "rocksalt", a=5.64)
    unit.rattle(0.1, seed=2)
    batch = energy(convert.from_ase([unit, unit * (1, 2, 1), unit]))
    torch.testing.assert_close(batch[1], 2 * batch[0])
    torch.testing.assert_close(batch[2], batch[0])
    list_of_ase = ase_neighbor_list("ijd", unit, 4.0)
    i, j, d = (torch.from_numpy(a) for a in list_of_ase)
    model.interaction_graph = lambda *_: (torch.stack([j, i]), d)
    alone = model(torch.from_numpy(unit.numbers).long(), torch.from_numpy(unit.positions))
    torch.testing.assert_close(batch[:1], alone)


LOADER = """
import sys, torch
from ase.build import bulk
from pyfast import crystal
from pyfast.crystal import convert

class Graphs(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, k):
        c = convert.from_ase(bulk("NaCl", "rocksalt", a=5.0 + k) * (k + 1, 2, 2))
        near = crystal.radius_graph(c.positions, c.cell, 6.0, natoms=c.natoms)
        return near, crystal.crystal_nn_graph(c.positions, c.cell, natoms=c.natoms)

if __name__ == "__main__":
    torch.set_num_threads(2)
    want = [Graphs()[k] for k in range(4)]  # the parent's thread pool exists now, and will not in forked workers
    loader = torch.utils.data.DataLoader(
        Graphs(), batch_size=None, num_workers=2, multiprocessing_context=sys.argv[1], timeout=120
    )
    for got, expected in zip(loader, want, strict=True):
        for a, b in zip(got, expected, strict=True):
            assert all((x is None and y is None) or torch.equal(x, y) for x, y in zip(a, b, strict=True))
    print("same")
"""


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_in_workers_of_a_loader(how, tmp_path):
    (tmp_path / "loader.py").write_text(LOADER)
    run = subprocess.run(
        [sys.executable, "-P", str(tmp_path / "loader.py"), how], capture_output=True, text=True, timeout=300
    )
    assert run.stdout.strip() == "same", run.stderr


def same(a, b):
    """Whether two graphs, or tuples of graphs and tensors, are the same to the bit."""
    a, b = (torch.utils._pytree.tree_leaves(tuple(x)) for x in (a, b))
    return all(x is y is None or torch.equal(x, y) for x, y in zip(a, b, strict=True))


TAKE = {
    "radius_graph": lambda *given, **options: crystal.radius_graph(*given, cutoff=4.0, vectors=True, **options),
    "knn_graph": lambda *given, **options: crystal.knn_graph(*given, k=5, cutoff=4.0, vectors=True, **options),
    "NeighborList": lambda *given, **options: crystal.NeighborList(4.0)(*given, **options),
    "voronoi_graph": crystal.voronoi_graph,
    "crystal_nn_graph": crystal.crystal_nn_graph,
}


@pytest.mark.parametrize("take", TAKE.values(), ids=TAKE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_graphs_take_crystals(take, dtype):
    periodic = take in (crystal.voronoi_graph, crystal.crystal_nn_graph)
    c = convert.from_ase([ATOMS[n] for n in ("copper", "salt", *(() if periodic else ("slab", "water")))], dtype)
    assert same(take(c), take(c.positions, c.cell, natoms=c.natoms, pbc=c.pbc))
    assert same(take(c._replace(positions=c.positions.requires_grad_())), take(c))
    none = convert.from_ase([], dtype)
    assert same(take(none), take(none.positions, none.cell, natoms=[]))


def test_neighbors_take_one_crystal():
    slab = convert.from_ase(ATOMS["slab"])
    assert same(crystal.neighbors(slab, cutoff=4.0), crystal.neighbors(slab.positions, slab.cell[0], 4.0, slab.pbc[0]))
    near = crystal.NeighborList(4.0, skin=0.5)
    assert not near.holds(slab)
    near(slab)
    assert near.holds(slab)
    assert near.holds(slab.positions, slab.cell, slab.natoms, slab.pbc)
    assert not near.holds(slab._replace(pbc=~slab.pbc))
    with pytest.raises(ValueError, match=r"positions must be of one structure, got Crystals\(2 .*; radius_graph takes"):
        crystal.neighbors(convert.from_ase([ATOMS["slab"]] * 2), cutoff=4.0)
    for natoms in (None, 2, torch.tensor(2)):  # as radius_graph takes or refuses them
        wrong = slab._replace(natoms=natoms)
        assert answer(crystal.neighbors, wrong) == answer(crystal.radius_graph, wrong)


def answer(make, crystals):
    try:
        return make(crystals, cutoff=4.0).edge_index.tolist()
    except (TypeError, ValueError) as error:
        return str(error)


@pytest.mark.parametrize("take", TAKE.values(), ids=TAKE)
def test_crystals_have_their_own(take):
    c = convert.from_ase(ATOMS["copper"])
    rule = "must be None with Crystals, which have their own, got"
    with pytest.raises(ValueError, match=rf"natoms {rule} list of int$"):
        take(c, natoms=[1])
    with pytest.raises(ValueError, match=rf"pbc {rule} bool$"):
        take(c, pbc=True)
    with pytest.raises(ValueError, match=rf"cell {rule} a tensor; name what follows Crystals, as in cutoff=5"):
        take(c, c.cell)
    if take is not TAKE["NeighborList"]:
        with pytest.raises(ValueError, match=rf"batch {rule} a tensor$"):
            take(c, batch=torch.tensor([0]))
    bad = c._replace(positions=c.positions.numpy())
    with pytest.raises(TypeError, match=r"positions must be a float32 or float64 tensor, got ndarray; torch"):
        take(bad)


def test_what_follows_crystals_is_named():
    copper = convert.from_ase(ATOMS["copper"])
    with pytest.raises(ValueError, match="which have their own, got float; name what follows Crystals, as in cutoff="):
        crystal.radius_graph(copper, 5.0)
    with pytest.raises(ValueError, match=r"have their own, got int; name what follows Crystals, as in .* or k=12$"):
        crystal.knn_graph(copper, 12)
    with pytest.raises(ValueError, match="cutoff must be given, got None"):
        crystal.radius_graph(copper)
    with pytest.raises(ValueError, match="k must be given, got None"):
        crystal.knn_graph(copper)


def test_others_structures_are_told_the_way():
    copper = ATOMS["copper"]
    with pytest.raises(TypeError, match=r"got Atoms; crystal.convert.from_ase makes Crystals of Atoms"):
        crystal.radius_graph(copper, cutoff=3.0)
    with pytest.raises(TypeError, match=r"got list of Atoms; crystal.convert.from_ase makes Crystals of Atoms"):
        crystal.radius_graph([copper], cutoff=3.0)
    with pytest.raises(TypeError, match=r"got list of Crystals; crystal.join makes one Crystals of several"):
        crystal.radius_graph([convert.from_ase(copper)] * 2, cutoff=3.0)
    with pytest.raises(TypeError, match=r"got tuple of Crystals$"):
        crystal.radius_graph((convert.from_ase(copper), None), cutoff=3.0)  # as from_pyg returns
    with pytest.raises(TypeError, match=r"got Cell; crystal.convert.from_ase makes Crystals of Atoms"):
        crystal.neighbors(torch.from_numpy(copper.positions), copper.cell, 3.0)
    (structure,) = convert.to_pymatgen(convert.from_ase(copper))
    with pytest.raises(TypeError, match=r"got Structure; crystal.convert.from_pymatgen makes Crystals of Structures"):
        crystal.crystal_nn_graph(structure)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of its compiler
def test_crystals_compile():
    crystals = convert.from_ase([ATOMS["copper"], ATOMS["slab"]])

    @torch.compile(fullgraph=True)
    def near(c):
        return crystal.radius_graph(c, cutoff=3.0, capacity=500, on_error="mask")

    assert same(near(crystals), crystal.radius_graph(crystals, cutoff=3.0, capacity=500))


def test_what_is_printed_is_short():
    crystals = convert.from_ase(bulk("Cu"))
    graph = crystal.radius_graph(crystals.positions, crystals.cell, 3.0, natoms=crystals.natoms)
    assert repr(crystals) == "Crystals(1 structures, 1 atoms, torch.float64)"
    assert repr(graph) == "PeriodicGraph(1 structures, 1 atoms, 12 edges)"
    assert repr(crystal.voronoi_graph(crystals)) == "VoronoiGraph(PeriodicGraph(1 structures, 1 atoms, 12 edges))"
    assert repr(crystal.triplet_tiles(graph)) == "Tiles(1 atoms, 144 pairs)"
    near = crystal.NeighborList(3.0, skin=0.5)
    near(crystals)
    assert repr(near) == "NeighborList(cutoff=3.0, skin=0.5, rebuilds=1)"
    with pytest.raises(ValueError, match=r"cell must have shape \(3, 3\), rows its vectors, got \(1, 3, 3\); radius"):
        crystal.neighbors(crystals.positions, crystals.cell, 3.0)
