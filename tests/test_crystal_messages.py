"""Messages along edges and their tables: meaning, every derivative, every transform, padding, bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfast.crystal import PeriodicGraph, RadialTable, conv
from pyfast.crystal import _operators as ops
from pyfast.reference.crystal import messages as reference


def some_graph(n, e, dtype=torch.float64, padding=0, seed=0, cutoff=3.0):
    """Random edges, sorted by target; no symmetry."""
    g = torch.Generator().manual_seed(seed)
    target = torch.randint(max(n, 1), (e,), generator=g).sort().values
    ptr = torch.searchsorted(target, torch.arange(n + 1))
    target = torch.cat([target, target.new_zeros(padding)])
    source = torch.randint(max(n, 1), (e + padding,), generator=g)
    distance = torch.rand(e + padding, generator=g, dtype=torch.float64) * cutoff
    return PeriodicGraph(
        torch.stack([source, target]),
        torch.zeros(e + padding, 3, dtype=torch.int32),
        distance.to(dtype),
        torch.full((e + padding,), -1),
        ptr,
        torch.tensor([0, e]),
        torch.tensor([0, n]),
        torch.zeros(1, dtype=torch.int32),
    )


def example(n, e, columns, dtype=torch.float64, knots=9, padding=0):
    graph = some_graph(n, e, dtype, padding)
    g = torch.Generator().manual_seed(1)
    make = lambda *size: torch.randn(*size, generator=g, dtype=torch.float64).to(dtype)  # noqa: E731
    return graph, make(n, columns), make(e + padding, columns), make(e + padding), make(knots, 2, columns)


SIZES = [(0, 0, 3), (1, 0, 1), (1, 7, 5), (5, 31, 0), (13, 100, 64), (40, 300, 83), (3, 50, 200)]
SPACING = 3.0 / 8


def table_conv(x, scale, r, table, graph, order=0):
    return ops.table_conv(x, scale, r, table, *ops.rows(graph), 0.0, SPACING, order)


def plain_table_conv(x, scale, r, table, graph, order=0):
    filter = scale[:, None] * reference.read(table, r, 0.0, SPACING, order)
    return reference.conv(x, filter, graph.source, graph.target, graph.num_atoms)


def gradients(function, *args):
    def of(*args):
        args = [a.clone().requires_grad_() for a in args]
        out = function(*args)
        g = torch.Generator().manual_seed(2)
        weight = torch.randn(out.shape, generator=g, dtype=torch.float64).to(out.dtype)
        return torch.autograd.grad((out * weight).sum(), args)

    return of


def agree(ours, plain, *args):
    """In float64 the reference is no truth: two orders of the same sums."""
    torch.testing.assert_close(ours(*args), plain(*args))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "e", "columns"), SIZES)
def test_conv_matches_reference(check, n, e, columns, dtype):
    graph, x, filter, _, _ = example(n, e, columns, dtype)
    ours = lambda x, f: conv(x, f, graph)  # noqa: E731
    plain = lambda x, f: reference.conv(x, f, graph.source, graph.target, n)  # noqa: E731
    check(ours, plain, x, filter)
    check(gradients(ours), gradients(plain), x, filter)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("order", range(5))
@pytest.mark.parametrize(("n", "e", "columns"), SIZES)
def test_tables_match_reference(check, n, e, columns, order, dtype):
    check = check if dtype == torch.float32 else agree
    graph, x, _, scale, table = example(n, e, columns, dtype)
    ours = lambda x, s, r, t: table_conv(x, s, r, t, graph, order)  # noqa: E731
    plain = lambda x, s, r, t: plain_table_conv(x, s, r, t, graph, order)  # noqa: E731
    check(ours, plain, x, scale, graph.distance, table)
    if order < 3:  # the piece's own polynomial differentiates no further in the reference
        check(gradients(ours), gradients(plain), x, scale, graph.distance, table)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # forward mode's own
def test_every_order_of_derivative():
    graph, x, filter, scale, table = example(4, 11, 3, knots=5)
    views, r = ops.rows(graph), graph.distance
    leaf = lambda t: t.clone().requires_grad_()  # noqa: E731
    g = torch.randn(4, 3, dtype=torch.float64)
    calls = {
        "conv": (lambda x, f: ops.conv(x, f, *views), (x, filter)),
        "product": (lambda x, g: ops.product(x, g, *views), (x, g)),
        "table_conv": (lambda *a: ops.table_conv(*a, *views, 0.0, 0.75, 0), (x, scale, r, table)),
        "table_conv 1": (lambda *a: ops.table_conv(*a, *views, 0.0, 0.75, 1), (x, scale, r, table)),
        "table_dot": (lambda *a: ops.table_dot(*a, *views, 0.0, 0.75, 0), (x, g, r, table)),
        "table_sums": (lambda *a: ops.table_sums(*a, *views, 5, 0.0, 0.75, 0), (x, g, scale, r)),
    }
    for name, (f, args) in calls.items():
        args = tuple(leaf(a) for a in args)
        assert torch.autograd.gradcheck(f, args, check_forward_ad=True), name
        assert torch.autograd.gradgradcheck(f, args), name


def test_edges_turned_are_the_adjoint():
    graph, x, filter, _, _ = example(13, 100, 7)
    views, g = ops.rows(graph), torch.randn(13, 7, dtype=torch.float64)
    here = (ops.conv(x, filter, *views) * g).sum()
    torch.testing.assert_close(here, (ops.conv(g, filter, *views.turned) * x).sum())
    torch.testing.assert_close(here, (ops.product(x, g, *views) * filter).sum())
    assert torch.equal(ops.product(g, x, *views.turned), ops.product(x, g, *views))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_padding_counts_for_nothing(dtype):
    full, short = (example(13, 100, 7, dtype, padding=p) for p in (0, 9))
    graph, (_, x, filter, scale, table) = short[0], full
    wide = torch.cat([filter, torch.full((9, 7), math.nan, dtype=dtype)]).requires_grad_()
    assert torch.equal(conv(x, wide, graph), conv(x, filter, full[0]))
    conv(x, wide, graph).sum().backward()
    assert torch.equal(wide.grad[100:], torch.zeros(9, 7, dtype=dtype))
    r = torch.cat([full[0].distance, graph.distance[100:] * 0]).requires_grad_()
    out = table_conv(x, torch.ones_like(r), r, table, graph)
    assert torch.equal(out, table_conv(x, torch.ones_like(scale), full[0].distance, table, full[0]))
    out.sum().backward()
    assert torch.equal(r.grad[100:], torch.zeros(9, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_same_bits_on_any_number_of_threads(threads, dtype):
    graph, x, filter, scale, table = example(700, 20_000, 65, dtype)
    threads(lambda: (conv(x, filter, graph), *gradients(lambda x, f: conv(x, f, graph))(x, filter)))
    threads(lambda: gradients(lambda *a: table_conv(*a, graph))(x, scale, graph.distance, table))


@given(st.data(), st.integers(1, 9), st.integers(0, 30), st.integers(1, 9))
@settings(deadline=None, max_examples=40)
def test_any_strides_give_the_same_bits(strided, data, n, e, columns):
    graph, x, filter, _, _ = example(n, e, columns, torch.float32)
    a, b = data.draw(strided(x)), data.draw(strided(filter))
    assert torch.equal(conv(a, b, graph), conv(a.contiguous(), b.contiguous(), graph))


def test_int32_graphs():
    graph, x, filter, _, _ = example(13, 100, 7)
    narrow = graph._replace(edge_index=graph.edge_index.int(), ptr=graph.ptr.int())
    assert torch.equal(conv(x, filter, narrow), conv(x, filter, graph))


def test_edges_outside_of_their_rows_are_refused():
    graph, x, filter, _, _ = example(13, 100, 7)
    with pytest.raises(IndexError, match=r"target\[\d+\] must be \d+, in whose row it is, got \d+"):
        conv(x, filter, graph._replace(edge_index=graph.edge_index.flip(1)))


def test_pointers_that_change_in_place_are_seen():
    graph, x, filter, _, _ = example(13, 100, 7)
    conv(x, filter, graph)
    graph.edge_index[1], graph.ptr[1:-1] = 12, 0
    want = reference.conv(x, filter, graph.source, graph.target, 13)
    torch.testing.assert_close(conv(x, filter, graph), want)
    graph.ptr[1:] = 0  # all is padding
    assert not conv(x, filter, graph).any()


def test_a_graph_is_sorted_once_and_forgotten_with_it():
    graph, x, filter, _, _ = example(13, 100, 7)
    before = len(ops._known)
    assert ops.rows(graph) is ops.rows(graph)
    graph.edge_index[0, 0] = (graph.edge_index[0, 0] + 1) % 13
    want = reference.conv(x, filter, graph.source, graph.target, 13)
    torch.testing.assert_close(conv(x, filter, graph), want)
    del graph
    assert len(ops._known) == before


TRANSFORMS = {
    "grad": lambda f, x, w: torch.func.grad(lambda x, w: f(x, w).square().sum(), (0, 1))(x[0], w[0]),
    "grad of grad": lambda f, x, w: torch.func.grad(
        lambda w: torch.func.grad(lambda x: (f(x, w) ** 3).sum())(x[0]).square().sum()
    )(w[0]),
    "vmap": lambda f, x, w: torch.vmap(f)(x, w),
    "vmap of grad": lambda f, x, w: torch.vmap(torch.func.grad(lambda x, w: (f(x, w) ** 2).sum()), (0, None))(x, w[0]),
    "jvp": lambda f, x, w: torch.func.jvp(f, (x[0], w[0]), (x[1], w[1])),
    "hessian": lambda f, x, w: torch.func.hessian(lambda x: (f(x, w[0]) ** 3).sum())(x[0]),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # forward mode's own
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_function_transforms(transform):
    graph, x, filter, _, _ = example(4, 11, 3)
    x, w = torch.stack([x, 2 * x]), torch.stack([filter, -filter])
    got = TRANSFORMS[transform](lambda x, w: conv(x, w, graph), x, w)
    want = TRANSFORMS[transform](lambda x, w: reference.conv(x, w, graph.source, graph.target, 4), x, w)
    torch.testing.assert_close(got, want)


def test_operator_contract():
    graph, x, filter, scale, table = example(4, 11, 3)
    views, g = ops.rows(graph), torch.randn(4, 3, dtype=torch.float64)
    x, r = x.requires_grad_(), graph.distance.requires_grad_()
    piece = (0.0, SPACING, 0)
    for name, args in {
        "conv": (x, filter, *views),
        "product": (x, g, *views),
        "transpose": (graph.source, graph.target, graph.ptr, 4),
        "table_conv": (x, scale, r, table, *views, *piece),
        "table_dot": (x, g, r, table, *views, *piece),
        "table_sums": (x, g, scale, r, *views, 9, *piece),
    }.items():
        torch.library.opcheck(getattr(torch.ops.pyfast, f"crystal_{name}").default, args)


def test_compiles_whole():
    graph, x, filter, _, _ = example(13, 100, 7)
    compiled = torch.compile(conv, fullgraph=True, backend="aot_eager")
    x, filter = x.requires_grad_(), filter.requires_grad_()
    got, want = compiled(x, filter, graph), conv(x, filter, graph)
    assert torch.equal(got, want)
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), (x, filter)) for y in (got, want)), strict=True):
        assert torch.equal(a, b)


class Filters(torch.nn.Module):
    """SchNet's: Gaussians of the distance, two layers, a cutoff."""

    def __init__(self, columns, cutoff=3.0, gaussians=12):
        super().__init__()
        self.register_buffer("centers", torch.linspace(0, cutoff, gaussians))
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(gaussians, 8), torch.nn.Softplus(), torch.nn.Linear(8, columns)
        )
        self.cutoff = cutoff

    def forward(self, r):
        spread = torch.exp(-8 * (r[:, None] - self.centers) ** 2)
        return self.layers(spread) * (0.5 + 0.5 * torch.cos(math.pi * r / self.cutoff))[:, None]


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Filters(5).double()


def test_table_reaches_its_tolerance(network):
    table = RadialTable(network, 3.0, tolerance=1e-9, knots=4)
    r = torch.rand(10_000, dtype=torch.float64) * 3
    assert not table.exact
    assert table.error <= 1e-9
    assert (table(r) - network(r)).abs().max() <= 2e-9 * network(r).abs().max()
    coarse = RadialTable(network, 3.0, tolerance=1.0, knots=65)
    fine = RadialTable(network, 3.0, tolerance=1.0, knots=129)
    assert 12 < coarse.error / fine.error < 20  # the fourth power of the spacing
    assert "knots=65" in repr(coarse)


def test_table_is_exact_where_no_table_will_do():
    rule = "the network of a RadialTable is called for every edge, slowly: "
    with pytest.warns(UserWarning, match=rf"^{rule}16384 knots err by 5.*e-01 of its .*, tolerance 1e-05$") as seen:
        table = RadialTable(lambda r: (r[:, None] > 1.0).float(), 3.0)
    assert [w.filename for w in seen] == [__file__]
    assert table.exact
    table.refresh()  # warns no more
    graph, x, _, _, _ = example(13, 100, 1, torch.float32)
    want = reference.conv(x, (graph.distance > 1).float()[:, None], graph.source, graph.target, 13)
    torch.testing.assert_close(conv(x, table, graph), want)
    torch.testing.assert_close(conv(x, table, graph, weight=torch.full((100,), 2.0)), 2 * want)
    with pytest.warns(UserWarning, match=rf"^{rule}it is not finite everywhere in \[0, 3\]$"):
        assert RadialTable(lambda r: (1 / r)[:, None], 3.0).exact
    assert not RadialTable(lambda r: (1 / r)[:, None], 3.0, minimum=0.5).exact
    far = graph._replace(distance=graph.distance + 3)
    for call in (lambda: conv(x, table, far), lambda: table(far.distance.float())):
        with pytest.raises(ValueError, match=r"distance\[0\] must be in \[0, 3\]"):
            call()
    assert torch.func.vmap(table)(torch.ones(2, 5)).shape == (2, 5, 1)


def test_a_table_of_another_width_is_refused():
    graph, x, _, _, _ = example(13, 100, 4, torch.float32)
    table = RadialTable(lambda r: torch.stack([r, r * r], 1), 10.0)
    with pytest.raises(ValueError, match="filter must return as many columns as x has, 4, got 2"):
        conv(x, table, graph)


@pytest.mark.filterwarnings("ignore:the network of a RadialTable is called")
@pytest.mark.parametrize("most", [256, 2])
def test_padding_may_lie_where_no_table_reaches(most):
    """Its distance is 0, where a network may be singular."""
    full, short = (example(13, 100, 1, padding=p)[0] for p in (0, 9))
    x, power = example(13, 100, 1)[1], torch.nn.Parameter(torch.tensor(-1.0).double())
    network = torch.nn.Module()
    network.power, network.forward = power, lambda r: (r**power)[:, None]
    table = RadialTable(network, 4.0, minimum=0.5, knots=most, most=most)
    assert table.exact == (most == 2)
    r = full.distance + 0.6
    padded = torch.cat([r, torch.zeros(9, dtype=torch.float64)]).requires_grad_()
    found = []
    for graph, distance in ((full, r.requires_grad_()), (short, padded)):
        out = conv(x, table, graph, distance)
        found.append((out, *torch.autograd.grad(out.square().sum(), [distance, power])))
    for got, want in zip(found[1], found[0], strict=True):
        assert torch.equal(got[: len(want)] if got.dim() else got, want)
    assert not found[1][1][100:].any()


def test_training_goes_through_the_table(network):
    """Forces and a loss of them: gradients of the network's parameters against those of the network on each edge."""
    graph, x, _, scale, _ = example(13, 100, 5)
    table = RadialTable(network, 3.0, tolerance=1e-11, most=1 << 15)
    assert not table.exact
    found = []
    for filters in (lambda r: table, lambda r: network(r) * scale[:, None]):
        r = graph.distance.clone().requires_grad_()
        features = x.clone().requires_grad_()
        filter = filters(r)
        if filter is table:
            out = conv(features, table, graph, distance=r, weight=scale)
        else:
            out = conv(features, filter, graph)
        (force,) = torch.autograd.grad(out.tanh().sum(), r, create_graph=True)
        loss = force.square().sum() + out.square().sum()
        found.append([out, force, *torch.autograd.grad(loss, [features, *network.parameters()])])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_table_sees_parameters_that_change(network):
    table, r = RadialTable(network, 3.0, tolerance=1e-6), torch.rand(9, dtype=torch.float64)
    with torch.no_grad():
        before = table(r)
        assert table.values() is table.values()
        network.layers[2].weight.mul_(2)
        assert not torch.equal(table(r), before)
        network.layers[0].weight.mul_(50)  # a network that now needs more knots
    knots = table.num_knots
    table.refresh()
    assert table.num_knots > knots


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"network": 3}, TypeError, "network must be callable, got int"),
        ({"cutoff": math.nan}, ValueError, "cutoff must be finite and above 0.0, got nan"),
        ({"cutoff": 0.5, "minimum": 0.5}, ValueError, "cutoff must be finite and above 0.5, got 0.5"),
        ({"minimum": -0.5}, ValueError, "minimum must be finite and at least 0, got -0.5"),
        ({"tolerance": 0.0}, ValueError, "tolerance must be finite and above 0.0, got 0.0"),
        ({"knots": 1}, ValueError, "knots must be an integer of at least 2, got 1"),
        ({"most": 100}, ValueError, "most must be at least knots, 256, got 100"),
        ({"network": lambda r: r}, ValueError, r"network must return \(256, F\) for \(256,\) distances, got \(256,\)"),
        ({"network": lambda r: 3}, ValueError, "network must return .* got int"),
        ({"network": lambda r: r.new_zeros(len(r), 0)}, ValueError, r"network must return .* got \(256, 0\)"),
        ({"network": lambda r: r[:, None].half()}, TypeError, "network must return float32 or float64, got"),
    ],
)
def test_table_refuses_by_name(wrong, error, message):
    with pytest.raises(error, match=message):
        RadialTable(**({"network": lambda r: r[:, None], "cutoff": 3.0} | wrong))


def test_a_network_that_fails_says_what_it_was_called_with():
    broken = torch.nn.Linear(1, 4).double()  # wants (M, 1)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        RadialTable(broken, 3.0)
    where = "network is called with distances of shape (M,), here (256,), torch.float64, on cpu; it returns (M, F)"
    assert caught.value.__notes__ == [f"RadialTable: {where}"]


def test_training_that_outgrows_the_table_warns():
    network = torch.nn.Module()
    network.steep = torch.nn.Parameter(torch.tensor(1.0))
    network.forward = lambda r: torch.sigmoid(network.steep * (r - 1.234))[:, None]
    table = RadialTable(network, 3.0, most=512)
    assert not table.exact
    network.steep.data.fill_(1e6)
    with pytest.warns(UserWarning, match="is called for every edge") as seen:
        table.refresh()
    assert [w.filename for w in seen] == [__file__]
    network.steep.data.fill_(1.0)
    table.refresh()
    assert not table.exact


@pytest.mark.parametrize("value", [-0.1, 3.1, math.nan, math.inf])
def test_distances_outside_the_table_are_refused(network, value):
    r = torch.rand(9, dtype=torch.float64)
    r[4] = value
    with pytest.raises(ValueError, match=r"distance\[4\] must be in \[0.0*, 3.0*\], got"):
        RadialTable(network, 3.0)(r)


def test_distances_of_another_kind_are_refused(network):
    table, r = RadialTable(network, 3.0), torch.rand(9, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"distance must have the dtype of the network, torch.float64, got"):
        table(r.float())
    with pytest.raises(ValueError, match=r"distance must have shape \(E,\), got \(3, 3\)"):
        table(r.reshape(3, 3))


REFUSED = [
    ({"x": torch.zeros(13)}, ValueError, r"x must have shape \(13, F\), got \(13,\)"),
    ({"x": torch.zeros(12, 7)}, ValueError, r"x must have shape \(13, F\), got \(12, 7\)"),
    ({"x": torch.zeros(13, 7, dtype=torch.int64)}, TypeError, "x must be float32 or float64, got torch.int64"),
    ({"x": [1.0]}, TypeError, "x must be a tensor, got list"),
    ({"filter": torch.zeros(99, 7)}, ValueError, r"filter must have shape \(100, 7\), got \(99, 7\)"),
    ({"filter": torch.zeros(100, 7).double()}, TypeError, "filter must have the dtype of x, torch.float32, got"),
    ({"filter": torch.zeros(100, 7, device="meta")}, TypeError, "filter must be on the device of x, cpu, got meta"),
    (
        {"filter": torch.nn.Linear(1, 7), "distance": torch.zeros(100)},
        TypeError,
        r"filter must be a tensor or a RadialTable, got Linear; RadialTable\(network, cutoff\) makes one of it",
    ),
    ({"filter": [1.0]}, TypeError, "filter must be a tensor or a RadialTable, got list of float$"),
    ({"graph": torch.zeros(2, 100)}, TypeError, "graph must be a PeriodicGraph, got Tensor"),
    ({"graph": None}, TypeError, "graph must be a PeriodicGraph, got NoneType"),
    ({"distance": torch.zeros(100)}, ValueError, "distance must be None where filter is a tensor, got a tensor"),
    ({"weight": torch.zeros(100)}, ValueError, "weight must be None where filter is a tensor, got a tensor"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), REFUSED)
def test_refuses_bad_input_by_name(wrong, error, message):
    graph, x, filter, _, _ = example(13, 100, 7, torch.float32)
    with pytest.raises(error, match=message):
        conv(**({"x": x, "filter": filter, "graph": graph} | wrong))


def test_graphs_that_lead_nowhere_are_refused():
    graph, x, filter, _, _ = example(13, 100, 7)
    for name, bad, message in [
        ("edge_index", graph.edge_index + 1, r"source\[\d+\] must be in \[0, 13\), got 13"),
        ("edge_index", graph.edge_index - 1, r"source\[\d+\] must be in \[0, 13\), got -1"),
        ("ptr", graph.ptr + 1, r"ptr\[0\] must be 0, got 1"),
        ("ptr", 2 * graph.ptr, r"ptr\[\d+\] must be at most 100, got 1"),
        ("ptr", graph.ptr.flip(0) - graph.ptr[-1] + 100, r"ptr\[0\] must be 0, got 100"),
    ]:
        with pytest.raises(IndexError, match=message):
            conv(x, filter, graph._replace(**{name: bad}))
    with pytest.raises(TypeError, match="graph must be on the device of x, cpu, got meta"):
        conv(x, filter, graph.to("meta"))
    table = RadialTable(lambda r: torch.stack([r] * 7, 1), 3.0)
    with pytest.raises(ValueError, match=r"distance must have shape \(100,\), got \(99,\)"):
        conv(x, table, graph, distance=graph.distance[:99])
    with pytest.raises(TypeError, match="filter must have the dtype of x"):
        conv(x, table, graph)
