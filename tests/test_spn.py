import itertools
import math

import numpy as np
import pytest
import torch

import pyfast
from pyfast import _C
from pyfast.reference import spn as reference
from pyfast.spn import _operators
from pyfast.spn._hclt import hidden_tree

FAMILIES = torch.tensor([0, 0, 0, 1, 2, 3, 0], dtype=torch.uint8)
WIDTHS = torch.tensor([2, 3, 2, 4, 4, 4, 17])
PARENTS = np.array([1, 2, -1, 2, 2, 4, 4])
REFUSED = r"must (be contiguous|be eight|have|be a value)|float32 or float64"
log_prob, log_prob_backward = _operators.log_prob, _operators.log_prob_backward


def structures(d=7):
    parents = PARENTS if d == 7 else np.arange(-1, d - 1)
    return {
        "hclt": hidden_tree(parents, 5),
        "hclt of one state": hidden_tree(parents, 1),
        "hclt of many states": hidden_tree(parents, 19),
        "rat": pyfast.spn.rat(d, replicas=3, depth=2, sums=5, leaves=3),
        "rat of one component": pyfast.spn.rat(d, replicas=1, depth=1, sums=1, leaves=1),
        "tree": pyfast.spn.tree(d, sum_children=2, product_children=2),
        "wide tree": pyfast.spn.tree(d, sum_children=11, product_children=7),
    }


STRUCTURES = structures()
DENSE = [name for name, s in STRUCTURES.items() if len(s.program)]
FORMS = [(name, True) for name in DENSE] + [(name, False) for name in STRUCTURES]


def graph_of(structure, family=FAMILIES, width=WIDTHS, dense=True):
    s, variable = structure, structure.variable[structure.kind == 0].long()
    first = torch.cat([torch.zeros(1, dtype=torch.int64), width[variable].cumsum(0)])
    program = s.program if dense else s.program[:0]
    quantum = torch.ones(len(family), dtype=torch.float64)
    return [s.kind, s.first, s.child, s.variable, first, family, quantum, program]


def leaf_parameters(family, width, g):
    u = torch.rand(3, generator=g, dtype=torch.float64) + 0.3
    a, b, m = u[0], u[1], 3 * u[2] - 2
    return {
        0: lambda: torch.randn(width, generator=g, dtype=torch.float64).log_softmax(0),
        1: lambda: torch.tensor([-a.log() - 0.9, 0, -0.5 / a**2, m]),
        2: lambda: torch.tensor([-3 * a, (3 * a).log(), 0, 0]),
        3: lambda: torch.tensor([a.log(), -a, 0, 0]),
        4: lambda: torch.tensor([-a, -1 - b, a, m]),
        5: lambda: torch.tensor([-a, 4 * b, -a, 0]),
        6: lambda: torch.tensor([-a, -1 - b, a, 0]),
    }[family]().double()


def example(structure, rows, family=FAMILIES, width=WIDTHS, dense=True, dtype=torch.float64, seed=0, missing=0.1):
    """Grad, x, weights, leaves, graph; weights are not normalised, as derivatives must not need that."""
    g = torch.Generator().manual_seed(seed)
    graph = graph_of(structure, family, width, dense)
    variable = structure.variable[structure.kind == 0].tolist()
    leaves = torch.cat([leaf_parameters(int(family[v]), int(width[v]), g) for v in variable])
    weights = torch.rand(structure.num_weights, generator=g, dtype=torch.float64) + 0.1
    x = 3 * torch.rand(rows, len(family), generator=g, dtype=torch.float64)
    for v, f in enumerate(family.tolist()):
        if f == 0:
            x[:, v] = torch.randint(int(width[v]), (rows,), generator=g).double()
        elif f in (2, 5):
            x[:, v] = (4 * x[:, v]).floor()
        elif f in (1, 4):
            x[:, v] -= 1.5
    x[torch.rand(x.shape, generator=g) < missing] = math.nan
    grad = torch.randn(rows, generator=g, dtype=torch.float64)
    return grad, x.to(dtype), weights.to(dtype), leaves.to(dtype), graph


def slow(x, weights, leaves, graph):
    return reference.log_likelihood(reference.Network(*graph[:6]), weights, leaves, x)


def slow_gradient(grad, x, weights, leaves, graph):
    weights, leaves = weights.detach().requires_grad_(), leaves.detach().requires_grad_()
    return torch.autograd.grad(slow(x, weights, leaves, graph), (weights, leaves), grad.to(x.dtype))


def close(got, wanted, eps=1e-13):
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=eps * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize(("name", "dense"), FORMS)
@pytest.mark.parametrize("rows", [1, 16, 203])
def test_matches_reference_in_double(name, dense, rows):
    grad, *inputs = example(STRUCTURES[name], rows, dense=dense)
    close([log_prob(*inputs)], [slow(*inputs)])
    close(log_prob_backward(grad, *inputs), slow_gradient(grad, *inputs))


@pytest.mark.parametrize(("name", "dense"), FORMS)
def test_matches_reference_in_single(check, name, dense):
    grad, *inputs = example(STRUCTURES[name], 700, dense=dense, dtype=torch.float32)
    graph = inputs.pop()
    check(
        lambda *a: tuple(log_prob_backward(grad, *a, graph)),
        lambda *a: tuple(slow_gradient(grad, *a, graph)),
        *inputs,
    )
    check(lambda *a: log_prob(*a, graph).to(a[0].dtype), lambda *a: slow(*a, graph), *inputs)


@pytest.mark.parametrize(("name", "dense"), FORMS)
def test_integrated_leaves_match_reference(name, dense):
    family = torch.where(FAMILIES > 0, FAMILIES + 3, 0).to(torch.uint8)
    grad, *inputs = example(STRUCTURES[name], 50, family=family, dense=dense)
    close([log_prob(*inputs)], [slow(*inputs)])
    close(log_prob_backward(grad, *inputs), slow_gradient(grad, *inputs))


@pytest.mark.parametrize("family", range(7))
@pytest.mark.parametrize("dense", [True, False])
def test_one_variable_one_state(family, dense):
    width = torch.tensor([3 if family == 0 else 4])
    for states in (1, 4):
        structure = hidden_tree(np.array([-1]), states)
        grad, *inputs = example(structure, 9, torch.tensor([family], dtype=torch.uint8), width, dense)
        close([log_prob(*inputs)], [slow(*inputs)])
        close(log_prob_backward(grad, *inputs), slow_gradient(grad, *inputs))


@pytest.mark.parametrize(("name", "dense"), FORMS)
def test_no_rows(name, dense):
    grad, *inputs = example(STRUCTURES[name], 0, dense=dense)
    assert log_prob(*inputs).shape == (0,)
    for d in log_prob_backward(grad, *inputs):
        assert not d.any()


@pytest.mark.parametrize(("name", "dense"), FORMS)
def test_missing_rows_add_nothing_to_leaves(name, dense):
    grad, x, *rest = example(STRUCTURES[name], 5, dense=dense)
    x[:] = math.nan
    dweights, dleaves = log_prob_backward(grad, x, *rest)
    assert not dleaves.any()
    close([dweights], [slow_gradient(grad, x, *rest)[0]])


@pytest.mark.parametrize(("name", "dense"), FORMS)
def test_flows_add_up(name, dense):
    """A sum's flow reaches its children; a row has one leaf of each variable, so posteriors sum to 1 per variable."""
    structure = STRUCTURES[name]
    _, x, weights, leaves, graph = example(structure, 41, dense=dense, missing=0)
    dweights, dleaves = log_prob_backward(torch.ones(41, dtype=torch.float64), x, weights, leaves, graph)
    sums = torch.repeat_interleave(torch.arange(structure.num_sums), structure.first.diff()[structure.kind == 2])
    flow = torch.zeros(structure.num_sums, dtype=torch.float64).index_add_(0, sums, weights * dweights)
    torch.testing.assert_close(flow[-1].item(), 41.0)
    assert (flow >= 0).all()
    variable = structure.variable[structure.kind == 0].long()
    posterior = torch.zeros(7, dtype=torch.float64)
    for leaf, v in enumerate(variable.tolist()):
        of = dleaves[graph[4][leaf] : graph[4][leaf + 1]]
        posterior[v] += of.sum() if FAMILIES[v] == 0 else of[0]
    torch.testing.assert_close(posterior, torch.full((7,), 41.0, dtype=torch.float64))


@pytest.mark.parametrize(("name", "dense"), FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_bits_for_any_number_of_threads(threads, name, dense, dtype):
    grad, *inputs = example(STRUCTURES[name], 1500, dense=dense, dtype=dtype)
    inputs[2][inputs[3][4][-2]] = -200.0  # some rows too narrow for float
    threads(lambda: (log_prob(*inputs), *log_prob_backward(grad, *inputs)))


@pytest.mark.parametrize("name", DENSE)
def test_both_forms_agree(name):
    grad, *inputs = example(STRUCTURES[name], 64)
    other = [*inputs[:3], graph_of(STRUCTURES[name], dense=False)]
    close([log_prob(*inputs)], [log_prob(*other)])
    close(log_prob_backward(grad, *inputs), log_prob_backward(grad, *other))


def binary(structure, rows=64, seed=0, dense=True, dtype=torch.float64):
    d = structure.num_variables
    family, width = torch.zeros(d, dtype=torch.uint8), torch.full((d,), 2)
    return example(structure, rows, family, width, dense, dtype, seed, missing=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "dense"), FORMS)
def test_very_small_probabilities(name, dense, dtype):
    """Leaves of log probability -1e4 between others: beyond float and double, but not beyond their exponents."""
    structure = structures(5)[name]
    grad, x, weights, leaves, graph = binary(structure, dense=dense, dtype=dtype)
    g = torch.Generator().manual_seed(1)
    leaves[torch.rand(leaves.shape, generator=g) < 0.6] = -1e4
    leaves[2 * torch.nonzero(structure.variable[structure.kind == 0] == 3).flatten() + 1] = -1e4
    x64 = (x.double(), weights.double(), leaves.double(), graph)
    wanted, eps = slow(*x64), torch.finfo(dtype).eps
    assert wanted.min() < -9e3
    torch.testing.assert_close(log_prob(x, weights, leaves, graph), wanted, rtol=8 * eps, atol=8 * eps)
    wide = [d.to(dtype) for d in slow_gradient(grad, *x64)]
    rounded = 1e4 * 7 * torch.finfo(torch.float64).eps  # what the reference's logarithms, of several such leaves, lose
    close(log_prob_backward(grad, x, weights, leaves, graph), wide, 200 * eps + rounded)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "dense"), FORMS)
def test_values_far_from_every_leaf(name, dense, dtype):
    """Log densities down to -1e25: far below what a power of two with an exponent of 32 bits can stand for."""
    grad, x, weights, leaves, graph = example(STRUCTURES[name], 40, dense=dense, dtype=dtype)
    x[:, 3] = (10.0 ** torch.arange(1, 12.9, 0.3)).to(dtype) * torch.tensor([1, -1]).repeat(20)
    wide = weights.double(), leaves.double(), graph
    wanted, eps = slow(x.double(), *wide), torch.finfo(dtype).eps
    plain = slow(x, weights, leaves, graph).double()
    terms = 4 + (7 if dtype == torch.float64 else 0)  # there plain PyTorch is the truth, and rounds every variable
    error = (log_prob(x, weights, leaves, graph) - wanted).abs()
    assert (error <= 2 * (plain - wanted).abs() + terms * eps * wanted.abs()).all()
    near = wanted > -1e10  # farther down, the reference's logarithms no longer tell trees apart
    assert wanted[near].min() < -1e9 * 2
    rows = zip(grad[near].split(1), x[near].double().split(1), strict=True)
    truths = [slow_gradient(g, row, *wide) for g, row in rows]
    found = log_prob_backward(grad[near], x[near], weights, leaves, graph)
    allowed = flow_rounding(STRUCTURES[name], int(near.sum()), dtype, wanted[near])
    for got, truth in zip(found, zip(*truths, strict=True), strict=True):
        truth = torch.stack(truth)
        assert ((got.double() - truth.sum(0)).abs() <= allowed * (truth.abs().sum(0) + 1)).all()


def flow_rounding(structure, rows, dtype, likelihood):
    """How far a sum over rows of what flows through an edge may be off, of 1 and the sum of its sizes.

    A flow is a product over levels, each of a weight and a value over a sum of as many values as a node has children;
    a leaf's parameter takes four operations more. A small flow p, whose logarithm is rounded, is off by p |log p| eps,
    which is less than eps. Densities themselves are rounded in double: six operations on each side of a comparison,
    then one for each variable and each level of the reference's logarithms.
    """
    levels, most = structure.height, int(structure.first.diff().max())
    roundings = levels * (most + 2) + 4 + rows
    logarithms = 12 + structure.num_variables + levels
    largest = float(likelihood.abs().max())
    return roundings * torch.finfo(dtype).eps + logarithms * torch.finfo(torch.float64).eps * largest


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "dense"), FORMS)
def test_rows_of_probability_0_add_nothing(name, dense, dtype):
    structure = structures(5)[name]
    grad, x, weights, leaves, graph = binary(structure, dense=dense, dtype=dtype)
    table = torch.nonzero(structure.variable[structure.kind == 0] == 3).flatten()
    leaves[2 * table + 1] = -math.inf  # x[3] = 1 never happens
    never = x[:, 3] == 1
    out = log_prob(x, weights, leaves, graph)
    assert (out[never] == -math.inf).all()
    assert out[~never].isfinite().all()
    got = log_prob_backward(grad, x, weights, leaves, graph)
    alone = log_prob_backward(grad[~never], x[~never], weights, leaves, graph)
    close(got, alone, 16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dense", [True, False])
def test_weights_of_0(dense, dtype):
    """A component without weight, however well it explains the row, neither hides the others nor gets a flow."""
    structure = hidden_tree(np.array([-1, 0]), 2)
    graph = graph_of(structure, torch.zeros(2, dtype=torch.uint8), torch.full((2,), 2), dense)
    leaves = torch.tensor([[-0.5, 0.0], [-0.5, -1e4]] * 2, dtype=dtype).flatten()
    weights = torch.ones(structure.num_weights, dtype=dtype)
    weights[-2] = 0  # of the root
    x = torch.ones(3, 2, dtype=dtype)
    wanted = torch.full((3,), -1e4, dtype=torch.float64)
    torch.testing.assert_close(log_prob(x, weights, leaves, graph), wanted, rtol=1e-11, atol=0)
    dweights, dleaves = log_prob_backward(torch.ones(3, dtype=torch.float64), x, weights, leaves, graph)
    assert dweights.isfinite().logical_or(dweights == math.inf).all()
    close([dleaves.sum()], [torch.tensor(6.0, dtype=dtype)])


@pytest.mark.parametrize(("name", "dense"), [("hclt", True), ("rat", True), ("hclt", False), ("tree", False)])
def test_derivatives_are_those_of_the_function(name, dense):
    structure = {"hclt": hidden_tree(PARENTS, 2), "rat": pyfast.spn.rat(7, 2, 1, 2, 2), "tree": STRUCTURES["tree"]}[
        name
    ]
    _, x, weights, leaves, graph = example(structure, 3, dense=dense)
    inputs = weights.requires_grad_(), leaves.requires_grad_()
    assert torch.autograd.gradcheck(lambda w, p: log_prob(x, w, p, graph), inputs)


@pytest.mark.parametrize("dense", [True, False])
def test_contract(dense):
    grad, x, weights, leaves, graph = example(STRUCTURES["hclt"], 5, dense=dense)
    operators = torch.ops.pyfast.spn_log_prob.default, torch.ops.pyfast.spn_log_prob_backward.default
    torch.library.opcheck(operators[0], (x, weights.requires_grad_(), leaves.requires_grad_(), graph))
    torch.library.opcheck(operators[1], (grad, x, weights.detach(), leaves.detach(), graph))


def test_compiles():
    grad, x, weights, leaves, graph = example(STRUCTURES["rat"], 33)

    def loss(w, p):
        return (log_prob(x, w.softmax(0), p, graph) * grad).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    given = weights.requires_grad_(), leaves.requires_grad_()
    torch.testing.assert_close(compiled(*given), loss(*given))
    close(torch.autograd.grad(compiled(*given), given), torch.autograd.grad(loss(*given), given))


def test_function_transforms():
    grad, x, weights, leaves, graph = example(STRUCTURES["hclt"], 6)
    got = torch.func.grad(lambda w, p: log_prob(x, w, p, graph) @ grad, (0, 1))(weights, leaves)
    close(got, slow_gradient(grad, x, weights, leaves, graph))
    each = torch.func.vmap(lambda w: log_prob(x, w, leaves, graph))(torch.stack([weights, 2 * weights]))
    close(each, [log_prob(x, weights, leaves, graph), log_prob(x, 2 * weights, leaves, graph)])
    batched = torch.func.vmap(lambda y: log_prob(y, weights, leaves, graph))(x.view(2, 3, 7))
    close([batched.flatten()], [log_prob(x, weights, leaves, graph)])


def test_x_has_no_derivative():
    _, x, weights, leaves, graph = example(STRUCTURES["hclt"], 6)
    with pytest.raises(NotImplementedError, match="no derivative in x"):
        log_prob(x.requires_grad_(), weights, leaves, graph).sum().backward()


def test_no_second_derivative():
    _, x, weights, leaves, graph = example(STRUCTURES["hclt"], 6)
    first = torch.autograd.grad(log_prob(x, weights.requires_grad_(), leaves, graph).sum(), weights, create_graph=True)
    with pytest.raises(NotImplementedError, match="no derivative"):
        first[0].sum().backward()


@pytest.mark.parametrize("dense", [True, False])
def test_hostile_input_is_refused(dense):
    grad, x, weights, leaves, graph = example(STRUCTURES["hclt"], 6, dense=dense)
    out = torch.empty(6, dtype=torch.float64), torch.empty_like(weights), torch.empty_like(leaves)

    def changed(i, f):
        g = [t.clone() for t in graph]
        g[i] = f(g[i])
        return g

    def put(i, value):
        return lambda t: t.index_fill(0, torch.tensor(i), value)

    wrong = [
        (x[:, :-1], weights, leaves, graph),
        (x.T, weights, leaves, graph),
        (x.float(), weights, leaves, graph),
        (x, weights[:-1], leaves, graph),
        (x, weights.half(), leaves, graph),
        (x, weights, leaves[1:], graph),
        (x, weights, leaves.float(), graph),
        (x, weights, leaves, graph[:-1]),
        (x, weights, leaves, changed(0, put(3, 7))),
        (x, weights, leaves, changed(1, put(20, 1 << 40))),
        (x, weights, leaves, changed(2, put(0, -1))),
        (x, weights, leaves, changed(2, put(0, 1 << 20))),
        (x, weights, leaves, changed(3, put(0, 99))),
        (x, weights, leaves, changed(4, put(1, 1 << 50))),
        (x, weights, leaves, changed(5, put(0, 9))),
        (torch.full_like(x, 2.5), weights, leaves, graph),
        (torch.full_like(x, math.inf), weights, leaves, graph),
        (torch.full_like(x, -1), weights, leaves, graph),
        (torch.full_like(x, 1e30), weights, leaves, graph),
    ]
    if dense:
        size = len(graph[7])
        wrong += [(x, weights, leaves, changed(7, put(i, v))) for i, v in itertools.product(range(size), (-1, 1 << 40))]
        wrong += [(x, weights, leaves, changed(7, lambda t, n=n: t[:n])) for n in range(1, size)]
    for inputs in wrong:
        with pytest.raises(ValueError, match=REFUSED):
            _C.spn.log_prob(*inputs, out[0])
        with pytest.raises(ValueError, match=REFUSED):
            _C.spn.log_prob_backward(grad, *inputs, *out[1:])
    for bad in (grad[:-1], grad.float()):
        with pytest.raises(ValueError, match=REFUSED):
            _C.spn.log_prob_backward(bad, x, weights, leaves, graph, *out[1:])


@pytest.mark.parametrize(("name", "dense"), FORMS)
def test_factors_of_any_size(name, dense):
    grad, *inputs = example(STRUCTURES[name], 30, dense=dense, dtype=torch.float32)
    one = log_prob_backward(grad, *inputs)
    for power in (2.0**-60, 2.0**60):
        for a, b in zip(log_prob_backward(grad * power, *inputs), one, strict=True):
            torch.testing.assert_close(a.double(), b.double() * power, rtol=0, atol=0)
