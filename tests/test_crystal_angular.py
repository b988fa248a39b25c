"""Sums over triplets weighted by series of the angle: values and derivatives against arrays, threads, bad input."""

import pytest
import torch

import pyfast.reference.crystal as reference_graphs
from pyfast import crystal
from pyfast.crystal import Tiles, triplet_tiles
from pyfast.reference.crystal import triplets as reference


def example(counts=(2, 1, 3), cutoff=2.0, dtype=torch.float64):
    """Crystals of cubes of about the cutoff: their graph, and the unit vectors of its edges."""
    g = torch.Generator().manual_seed(0)
    natoms = torch.tensor(counts)
    cell = (torch.eye(3) * 1.9 + 0.2 * torch.randn(len(counts), 3, 3, generator=g)).to(dtype)
    positions = (1.9 * torch.rand(int(natoms.sum()), 3, generator=g)).to(dtype)
    graph = reference_graphs.radius_graph(positions, cell, cutoff, natoms=natoms)
    vectors = crystal.edge_vectors(positions, cell, graph)
    return graph, vectors / crystal.lengths(vectors)[:, None]


def given(graph, channels, inner, degrees, dtype=torch.float64, seed=1):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(graph.num_edges, channels, generator=g, dtype=dtype)
    return x, torch.randn(graph.num_edges, inner, degrees, generator=g, dtype=dtype)


def with_gradients(f):
    """The value, and the gradients of its weighted sum."""

    def call(*args):
        leaves = [a.detach().requires_grad_() for a in args]
        out = f(*leaves)
        weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).reshape(out.shape)
        return out.detach(), torch.autograd.grad((out * weights).sum(), leaves)

    return call


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("channels", "inner", "degrees"), [(1, 1, 2), (64, 16, 5), (13, 3, 3), (8, 2, 4), (33, 9, 5)])
@pytest.mark.parametrize("through", [False, True])
def test_matches_reference(check, through, channels, inner, degrees, dtype):
    graph, unit = example((5, 2), 2.2, dtype=dtype)
    tiles, pairs = crystal.triplet_tiles(graph, through), crystal.triplet_indices(graph, through)
    x, radial = given(graph, channels, inner, degrees, dtype)
    fast = with_gradients(lambda x, u, r: crystal.angular_sum(x, u, r, tiles, through))
    slow = with_gradients(lambda x, u, r: reference.angular_sum(x, u, r, *pairs, through))
    if dtype == torch.float64:  # the reference is no truer
        torch.testing.assert_close(fast(x, unit, radial), slow(x, unit, radial), rtol=1e-10, atol=1e-10)
    else:
        check(fast, slow, x, unit, radial)


@pytest.mark.parametrize("through", [False, True])
def test_one_polynomial_depends_on_no_angle(through):
    graph, unit = example()
    x, radial = given(graph, 5, 3, 1)
    tiles = crystal.triplet_tiles(graph, through)
    out, (_, slopes, _) = with_gradients(lambda *a: crystal.angular_sum(*a, tiles, through))(x, unit, radial)
    torch.testing.assert_close(
        out, reference.angular_sum(x, unit, radial, *crystal.triplet_indices(graph, through), through)
    )
    assert not slopes.any()


@pytest.mark.parametrize("through", [False, True])
def test_edges_that_have_no_reverse(through):
    graph, unit = example((3,))
    kept = torch.arange(graph.num_edges) % 3 > 0
    index = graph.edge_index[:, kept]
    place = torch.where(kept, kept.cumsum(0) - 1, -1)
    ptr = torch.searchsorted(index[1].contiguous(), torch.arange(graph.num_atoms + 1))
    part = graph._replace(
        edge_index=index,
        shift=graph.shift[kept],
        distance=graph.distance[kept],
        reverse=place[graph.reverse[kept]],
        ptr=ptr,
    )
    tiles, pairs = crystal.triplet_tiles(part, through), crystal.triplet_indices(part, through)
    x, radial = given(part, 4, 2, 3)
    found = [
        with_gradients(f)(x, unit[kept], radial)
        for f in (
            lambda *a: crystal.angular_sum(*a, tiles, through),
            lambda *a: reference.angular_sum(*a, *pairs, through),
        )
    ]
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_padding_has_no_triplets():
    x, cell = torch.tensor([[0.0, 0, 0], [0.9, 0.8, 1.0]]).double(), 1.9 * torch.eye(3).double()
    exact = crystal.neighbors(x, cell, 1.95)
    graph = crystal.neighbors(x, cell, 1.95, capacity=exact.num_edges + 7, on_error="mask")
    unit = torch.zeros(graph.num_edges, 3).double()
    unit[: exact.num_edges] = crystal.edge_vectors(x, cell, exact) / exact.distance[:, None]
    features, radial = given(graph, 3, 2, 3)
    for through in (False, True):
        tiles = crystal.triplet_tiles(graph, through)
        out, (dx, du, dr) = with_gradients(lambda *a, t=tiles, how=through: crystal.angular_sum(*a, t, how))(
            features, unit, radial
        )
        assert out[: exact.num_edges].any()
        for padding in (t[exact.num_edges :] for t in (out, dx, du, dr)):
            assert (padding == 0).all()


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # forward mode's own
@pytest.mark.parametrize("through", [False, True])
def test_every_order_of_derivative(through):
    graph, unit = example((2,), 1.95)
    tiles = crystal.triplet_tiles(graph, through)
    x, radial = (a.requires_grad_() for a in given(graph, 2, 2, 4))
    inner = (0.9 * unit).requires_grad_()  # opposite edges at a cosine of -1 would be differentiated across the end
    f = lambda *a: crystal.angular_sum(*a, tiles, through)  # noqa: E731
    assert torch.autograd.gradcheck(f, (x, inner, radial), check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, (x, inner, radial), fast_mode=True)
    third = torch.func.grad(lambda u: torch.func.grad(lambda v: f(x, v, radial).square().sum())(u).square().sum())
    assert torch.autograd.gradcheck(third, (inner,), fast_mode=True)


@pytest.mark.parametrize("through", [False, True])
def test_gradients_of_torch_func_are_derived_again(through):
    graph, unit = example((2,), 1.95)
    tiles, pairs = crystal.triplet_tiles(graph, through), crystal.triplet_indices(graph, through)
    x, radial = given(graph, 3, 2, 4)
    found = []
    for f in (
        lambda *a: crystal.angular_sum(*a, tiles, through),
        lambda *a: reference.angular_sum(*a, *pairs, through),
    ):
        leaves = [a.clone().requires_grad_() for a in (x, unit, radial)]
        out, pull = torch.func.vjp(f, *leaves)
        first = pull(2 * out)  # after the transform has ended
        found.append([*first, *torch.autograd.grad(sum(d.square().sum() for d in first), leaves)])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("through", [False, True])
def test_operator_contract(through):
    graph, unit = example((2,), 1.95)
    x, radial = (a.requires_grad_() for a in given(graph, 3, 2, 4))
    tiles = crystal.triplet_tiles(graph, through)
    torch.library.opcheck(torch.ops.pyfast.crystal_angular.default, (x, unit.requires_grad_(), radial, *tiles, through))
    args = torch.ones(graph.num_edges, 2, 3).double(), x.detach(), unit.detach(), radial.detach(), *tiles, through
    torch.library.opcheck(torch.ops.pyfast.crystal_angular_back.default, args)


def layer(graph, channels, inner, degrees, outputs, dtype=torch.float64):
    """What GemNet's layer is given beside unit vectors."""
    weight = torch.randn(inner, channels, outputs, generator=torch.Generator().manual_seed(2), dtype=dtype)
    return *given(graph, channels, inner, degrees, dtype), weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("crystals", [((5, 2), 2.2), ((9, 7), 2.8)], ids=["small tiles", "large tiles, two runs"])
@pytest.mark.parametrize(
    ("channels", "inner", "degrees", "outputs"), [(1, 1, 1, 1), (32, 16, 5, 32), (13, 3, 2, 5), (8, 2, 4, 33)]
)
def test_gemnet_matches_reference(check, channels, inner, degrees, outputs, crystals, dtype):
    graph, unit = example(*crystals, dtype=dtype)
    tiles, pairs = crystal.triplet_tiles(graph), crystal.triplet_indices(graph)
    x, radial, weight = layer(graph, channels, inner, degrees, outputs, dtype)
    fast = with_gradients(lambda *a: crystal.gemnet_triplets(*a, tiles))
    slow = with_gradients(lambda *a: reference.gemnet_triplets(*a, *pairs))
    if dtype == torch.float64:  # the reference is no truer
        torch.testing.assert_close(fast(x, unit, radial, weight), slow(x, unit, radial, weight), rtol=1e-9, atol=1e-9)
    else:
        check(fast, slow, x, unit, radial, weight)


def test_large_tiles_are_of_more_than_a_batch_and_of_two_runs():
    graph, _ = example((9, 7), 2.8)
    assert graph.ptr.diff().max() > 96
    assert graph.num_edges > 1024 + graph.ptr.diff().max()


@pytest.mark.parametrize("how", ["autograd", "torch.func"])
def test_gradients_of_gemnet_are_derived_again(how):
    graph, unit = example()
    x, radial, weight = layer(graph, 6, 3, 5, 4)
    tiles, pairs, found = crystal.triplet_tiles(graph), crystal.triplet_indices(graph), []
    for f in (lambda *a: crystal.gemnet_triplets(*a, tiles), lambda *a: reference.gemnet_triplets(*a, *pairs)):
        leaves = [a.clone().requires_grad_() for a in (x, unit, radial, weight)]
        if how == "autograd":
            out = f(*leaves)
            first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
        else:
            out, pull = torch.func.vjp(f, *leaves)
            first = pull(2 * out)  # after the transform has ended
        found.append([out, *first, *torch.autograd.grad(sum(d.square().sum() for d in first), leaves)])
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-8)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # forward mode's own
def test_every_order_of_gemnets_derivative():
    graph, unit = example((2,), 1.95)
    tiles = crystal.triplet_tiles(graph)
    x, radial, weight = (a.requires_grad_() for a in layer(graph, 2, 2, 4, 3))
    inner = (0.9 * unit).requires_grad_()  # opposite edges at a cosine of -1 would be differentiated across the end
    f = lambda *a: crystal.gemnet_triplets(*a, tiles)  # noqa: E731
    assert torch.autograd.gradcheck(f, (x, inner, radial, weight), check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, (x, inner, radial, weight), fast_mode=True)


def test_gemnets_operator_contract():
    graph, unit = example((2,), 1.95)
    x, radial, weight = (a.requires_grad_() for a in layer(graph, 3, 2, 4, 5))
    tiles = crystal.triplet_tiles(graph)
    args = x, unit.requires_grad_(), radial, weight, tiles.ptr, tiles.tile_ptr, tiles.keep
    torch.library.opcheck(torch.ops.pyfast.crystal_gemnet.default, args)
    plain = torch.ones(graph.num_edges, 5).double(), *(a.detach() for a in args)
    torch.library.opcheck(torch.ops.pyfast.crystal_gemnet_back.default, plain)


def test_gemnet_gives_padding_nothing():
    x, cell = torch.tensor([[0.0, 0, 0], [0.9, 0.8, 1.0]]).double(), 1.9 * torch.eye(3).double()
    exact = crystal.neighbors(x, cell, 1.95)
    graph = crystal.neighbors(x, cell, 1.95, capacity=exact.num_edges + 7, on_error="mask")
    unit = torch.zeros(graph.num_edges, 3).double()
    unit[: exact.num_edges] = crystal.edge_vectors(x, cell, exact) / exact.distance[:, None]
    features, radial, weight = layer(graph, 3, 2, 3, 4)
    tiles = crystal.triplet_tiles(graph)
    out, (*slopes, _) = with_gradients(lambda *a: crystal.gemnet_triplets(*a, tiles))(features, unit, radial, weight)
    for found in (out, *slopes):
        assert found[: exact.num_edges].any()
        assert (found[exact.num_edges :] == 0).all()


def test_gemnet_never_holds_what_the_weight_multiplies():
    graph, unit = example((9, 7), 2.8, dtype=torch.float32)
    x, radial, weight = layer(graph, 64, 16, 7, 64, torch.float32)
    tiles = crystal.triplet_tiles(graph)
    leaves = [a.requires_grad_() for a in (x, unit, radial, weight)]
    with torch.profiler.profile(profile_memory=True) as profile:
        torch.autograd.grad(crystal.gemnet_triplets(*leaves, tiles).sum(), leaves)
    taken = [event.self_cpu_memory_usage for event in profile.events()]
    assert max(taken) > 0
    assert sum(max(n, 0) for n in taken) < 4 * graph.num_edges * 16 * 64  # as much as that alone


def test_same_bits_on_any_number_of_threads(threads):
    graph, unit = example((9, 5), 2.5, dtype=torch.float32)
    x, radial = given(graph, 64, 8, 7, torch.float32)
    for through in (False, True):
        tiles = crystal.triplet_tiles(graph, through)
        f = with_gradients(lambda *a, t=tiles, how=through: crystal.angular_sum(*a, t, how))
        threads(lambda f=f: f(x, unit, radial))


def test_gemnet_gives_the_same_bits_on_any_number_of_threads(threads):
    graph, unit = example((9, 7), 2.8, dtype=torch.float32)
    x, radial, weight = layer(graph, 16, 8, 7, 16, torch.float32)
    tiles = crystal.triplet_tiles(graph)
    f = with_gradients(lambda *a: crystal.gemnet_triplets(*a, tiles))
    threads(lambda: f(x, unit, radial, weight))


def test_inputs_of_any_strides():
    graph, unit = example()
    x, radial = given(graph, 6, 2, 3)
    tiles = crystal.triplet_tiles(graph)
    want = crystal.angular_sum(x, unit, radial, tiles)
    turned = radial.mT.contiguous().mT
    same = crystal.angular_sum(x.T.contiguous().T, unit.T.contiguous().T, turned, tiles)
    assert torch.equal(same, want)
    one = radial[:1].expand_as(radial)
    assert torch.equal(crystal.angular_sum(x, unit, one, tiles), crystal.angular_sum(x, unit, one.contiguous(), tiles))
    x, radial, weight = layer(graph, 6, 2, 3, 5)
    strided = x.T.contiguous().T, unit.T.contiguous().T, radial.mT.contiguous().mT, weight.mT.contiguous().mT
    same = crystal.gemnet_triplets(*strided, tiles)
    assert torch.equal(same, crystal.gemnet_triplets(x, unit, radial, weight, tiles))


def test_what_is_not_a_number_reaches_what_it_meets():
    graph, unit = example((2, 1))
    x, radial = given(graph, 3, 2, 3)
    x[0] = torch.nan  # an edge of the first atom
    out = crystal.angular_sum(x, unit, radial, crystal.triplet_tiles(graph))
    met = torch.arange(graph.num_edges) < graph.ptr[1]
    met[0] = False
    assert out[met].isnan().all()
    assert out[graph.ptr[1] :].isfinite().all()
    weight = torch.ones(2, 3, 4).double()
    out = crystal.gemnet_triplets(x, unit, radial, weight, crystal.triplet_tiles(graph))
    assert out[met].isnan().all()
    assert out[graph.ptr[1] :].isfinite().all()


def test_no_edges():
    graph = reference_graphs.neighbors(torch.zeros(1, 3), 9 * torch.eye(3), 2.0)
    tiles = crystal.triplet_tiles(graph)
    none = torch.zeros(0, 2)
    assert crystal.angular_sum(none, torch.zeros(0, 3), torch.zeros(0, 3, 4), tiles).shape == (0, 3, 2)
    assert crystal.gemnet_triplets(
        none, torch.zeros(0, 3), torch.zeros(0, 3, 4), torch.zeros(3, 2, 7), tiles
    ).shape == (0, 7)


@pytest.mark.parametrize("through", [False, True])
def test_unit_vectors_of_padded_graphs_derive_as_those_of_others(through):
    """As the page normalises them; and the derivative along positions is that of differences."""
    g = torch.Generator().manual_seed(5)
    cell = 2.1 * torch.eye(3).double() + 0.1 * torch.randn(3, 3, generator=g).double()
    x = 2.1 * torch.rand(2, 3, generator=g).double()
    whole = crystal.neighbors(x, cell, 2.3)
    padded = crystal.neighbors(x, cell, 2.3, capacity=whole.num_edges + 7)
    features = torch.rand(padded.num_edges, 3, generator=g).double()
    radial = torch.rand(padded.num_edges, 2, 4, generator=g).double()

    def energy(positions, graph):
        unit = torch.nn.functional.normalize(crystal.edge_vectors(positions, cell, graph))
        tiles, edges = triplet_tiles(graph, through), graph.num_edges
        return crystal.angular_sum(features[:edges], unit, radial[:edges], tiles, through).square().sum()

    grads = []
    for graph in (whole, padded):
        y = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(energy(y, graph), y)
        grads.append(grad)
    assert torch.equal(*grads)
    assert grads[0].abs().max() > 0.1
    assert torch.autograd.gradcheck(lambda y: energy(y, padded), (x.clone().requires_grad_(),))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda g, u, t: crystal.angular_sum(u, u[:, :2], u[:, :, None], t),
            ValueError,
            r"unit must have shape \(\d+, 3\)",
        ),
        (lambda g, u, t: crystal.angular_sum(u, u, u, t), ValueError, r"radial must have shape \(\d+, I, L\), got"),
        (
            lambda g, u, t: crystal.angular_sum(u, u, u[:, :, None].float(), t),
            TypeError,
            "radial must have the dtype of x, torch.float64, got torch.float32",
        ),
        (
            lambda g, u, t: crystal.angular_sum(u, u, u[:, :, None, None].flatten(2)[:, :, :0], t),
            ValueError,
            r"radial must have coefficients of at least one polynomial, got \(\d+, 3, 0\)",
        ),
        (
            lambda g, u, t: crystal.angular_sum(u, u, u[:, :, None], crystal.triplet_tiles(g, through=True)),
            ValueError,
            r"tiles must be those of triplet_tiles\(graph, False\), got those of True",
        ),
        (
            lambda g, u, t: crystal.angular_sum(u, u, u[:, :, None], t, through=True),
            ValueError,
            r"tiles must be those of triplet_tiles\(graph, True\), got those of False",
        ),
        (
            lambda g, u, t: crystal.gemnet_triplets(u, u, u[:, :, None], u[:3, :, None], triplet_tiles(g, True)),
            ValueError,
            r"tiles must be those of triplet_tiles\(graph, False\), got those of True",
        ),
        (
            lambda g, u, t: crystal.angular_sum(u, u.to("meta"), u[:, :, None], t),
            TypeError,
            "unit must be on the device of x, cpu, got meta",
        ),
        (
            lambda g, u, t: crystal.angular_sum(u, u, u[:, :, None].to("meta"), t),
            TypeError,
            "radial must be on the device of x, cpu, got meta",
        ),
        (
            lambda g, u, t: crystal.angular_sum(u, u, u[:, :, None], Tiles(*(x.to("meta") for x in t))),
            TypeError,
            "tiles must be on the device of x, cpu, got meta",
        ),
        (lambda g, u, t: crystal.angular_sum([1], u, u, t), TypeError, "x must be a tensor, got list"),
        (
            lambda g, u, t: crystal.angular_sum(u.half(), u, u, t),
            TypeError,
            "x must be float32 or float64, got torch.f",
        ),
        (
            lambda g, u, t: crystal.angular_sum(u[:3], u[:3], u[:3, :, None], t),
            IndexError,
            r"ptr\[\d+\] must be at most 3, got",
        ),
        (
            lambda g, u, t: crystal.angular_sum(u, u, u[:, :, None], t._replace(keep=t.keep[:5])),
            IndexError,
            r"tile_ptr\[\d+\] must be at most 5, got",
        ),
        (
            lambda g, u, t: crystal.gemnet_triplets(u[:3], u[:3], u[:3, :, None], u[:3, :, None], t),
            IndexError,
            r"ptr\[\d+\] must be at most 3, got",
        ),
        (
            lambda g, u, t: crystal.gemnet_triplets(u, u, u[:, :, None], u[:3, :, None], t._replace(keep=t.keep[:5])),
            IndexError,
            r"tile_ptr\[\d+\] must be at most 5, got",
        ),
        (
            lambda g, u, t: crystal.gemnet_triplets(u, u, u[:, :, None], u[:3, :, None].float(), t),
            TypeError,
            "weight must have the dtype of x, torch.float64, got torch.float32",
        ),
        (
            lambda g, u, t: crystal.gemnet_triplets(u, u, u[:, :, None], u[:1, :2, None], t),
            ValueError,
            r"weight must have shape \(3, 3, O\), got \(1, 2, 1\)",
        ),
    ],
)
def test_refuses_bad_input_by_name(call, error, message):
    graph, unit = example()
    with pytest.raises(error, match=message):
        call(graph, unit, crystal.triplet_tiles(graph))
