"""Structures are valid, invalid ones are refused by name, and programs say the same as graphs."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfast.spn import Structure, _hclt, _rat, _validity, hclt, rat, regions, tree
from pyfast.spn._hclt import hidden_tree
from pyfast.spn._program import Leaves, Mixture, Pairs

LEAF, PRODUCT, SUM = 0, 1, 2


def csr(nodes):
    """from_csr's arguments for a list of (kind, children, variable)."""
    first = list(itertools.accumulate((len(c) for _, c, _ in nodes), initial=0))
    return [k for k, _, _ in nodes], first, [c for _, cs, _ in nodes for c in cs], [v for _, _, v in nodes]


def brute_force(nodes, num_variables):
    """None for a valid network, else the set of nodes that may be named (empty: any or none)."""
    for i, (kind, children, variable) in enumerate(nodes):
        if (kind == LEAF) != (not children) or len(set(children)) < len(children):
            return {i} | {j for j, (k, c, _) in enumerate(nodes) if (k == LEAF) != (not c) or len(set(c)) < len(c)}
        if not (0 <= variable < num_variables if kind == LEAF else variable == -1):
            return set()
    scopes = {}

    def scope(i, path=()):
        if i in path:
            raise RecursionError
        if i not in scopes:
            kind, children, variable = nodes[i]
            scopes[i] = (
                frozenset([variable]) if kind == LEAF else frozenset().union(*(scope(c, path + (i,)) for c in children))
            )
        return scopes[i]

    try:
        for i in range(len(nodes)):
            scope(i)
    except RecursionError:
        return set()
    wrong = set()
    for i, (kind, children, _) in enumerate(nodes):
        parts = [scopes[c] for c in children]
        if (kind == SUM and len(set(parts)) > 1) or (kind == PRODUCT and sum(map(len, parts)) > len(scopes[i])):
            wrong.add(i)
    roots = set(range(len(nodes))) - {c for _, cs, _ in nodes for c in cs}
    if len(roots) != 1:
        return set()
    if wrong:
        return wrong
    return None if len(scopes[min(roots)]) == num_variables else roots


@st.composite
def networks(draw):
    """Valid networks with shared nodes, in any order of numbers."""
    num_variables = draw(st.integers(1, 5))
    nodes = [(LEAF, [], v) for v in range(num_variables)]
    scopes = [frozenset([v]) for v in range(num_variables)]
    for _ in range(draw(st.integers(0, 12))):
        kind = draw(st.sampled_from([LEAF, PRODUCT, SUM]))
        if kind == LEAF:
            v = draw(st.integers(0, num_variables - 1))
            nodes.append((LEAF, [], v))
            scopes.append(frozenset([v]))
            continue
        children = []
        for i in draw(st.permutations(range(len(nodes))))[: draw(st.integers(1, 4))]:
            if not children or (
                scopes[i] == scopes[children[0]] if kind == SUM else all(not scopes[i] & scopes[c] for c in children)
            ):
                children.append(i)
        nodes.append((kind, children, -1))
        scopes.append(frozenset().union(*(scopes[c] for c in children)))
    tops = []  # products that complete each parentless node with others
    for i in sorted(set(range(len(nodes))) - {c for _, cs, _ in nodes for c in cs}):
        children, covered = [i], scopes[i]
        for j in range(len(nodes) - 1, -1, -1):
            if not covered & scopes[j]:
                children.append(j)
                covered |= scopes[j]
        nodes.append((PRODUCT, children, -1))
        scopes.append(covered)
        tops.append(len(nodes) - 1)
    nodes.append((SUM, tops, -1))
    order = draw(st.permutations(range(len(nodes))))
    place = {old: new for new, old in enumerate(order)}
    return [(nodes[i][0], [place[c] for c in nodes[i][1]], nodes[i][2]) for i in order], num_variables


@given(networks())
@settings(deadline=None, max_examples=150)
def test_valid_networks_are_taken_and_renumbered(network):
    nodes, num_variables = network
    assert brute_force(nodes, num_variables) is None
    made = Structure.from_csr(*csr(nodes), num_variables)
    origin = made.origin.tolist()
    assert sorted(origin) == list(range(len(nodes)))
    for i, old in enumerate(origin):
        children = made.child[made.first[i] : made.first[i + 1]].tolist()
        assert all(c < i for c in children)
        assert (made.kind[i].item(), [origin[c] for c in children], made.variable[i].item()) == nodes[old]
    again = Structure.from_csr(made.kind, made.first, made.child, made.variable, num_variables)
    assert again == made
    assert again.origin.tolist() == list(range(len(nodes)))


@given(networks(), st.data())
@settings(deadline=None, max_examples=300)
def test_broken_networks_are_refused_by_name(network, data):
    nodes, num_variables = network
    for _ in range(data.draw(st.integers(1, 2))):
        i = data.draw(st.integers(0, len(nodes) - 1))
        kind, children, variable = nodes[i]
        children = list(children)
        what = data.draw(st.sampled_from(["add", "remove", "turn", "kind", "variable"]))
        other = data.draw(st.integers(0, len(nodes) - 1))
        if what == "add":
            children.append(other)
        elif what == "remove" and children:
            children.pop()
        elif what == "turn" and children:
            children[0] = other
        elif what == "kind":
            kind = data.draw(st.sampled_from([PRODUCT, SUM])) if children else kind
        elif variable >= 0:
            variable = data.draw(st.integers(0, num_variables - 1))
        nodes[i] = (kind, children, variable)
    wrong = brute_force(nodes, num_variables)
    if wrong is None:
        Structure.from_csr(*csr(nodes), num_variables)
        return
    with pytest.raises((ValueError, IndexError)) as error:
        Structure.from_csr(*csr(nodes), num_variables)
    if wrong:
        named = {int(word) for word in str(error.value).replace(",", " ").replace(":", " ").split() if word.isdigit()}
        assert named & wrong


@pytest.mark.parametrize(
    ("nodes", "error", "message"),
    [
        (
            [(SUM, [1, 2], -1), (LEAF, [], 0), (LEAF, [], 1)],
            ValueError,
            "sum 0 .* children 1 and 2, of which only one has",
        ),
        (
            [(LEAF, [], 0), (LEAF, [], 0), (PRODUCT, [0, 1], -1)],
            ValueError,
            "product 2 .* 0 and 1, which share variable 0",
        ),
        ([(SUM, [1, 1], -1), (LEAF, [], 0)], ValueError, "child once, got child 1 twice at node 0"),
        ([(SUM, [1], -1), (SUM, [2], -1), (SUM, [1], -1)], ValueError, "cycle through node [12]"),
        ([(SUM, [0], -1)], ValueError, "cycle through node 0"),
        ([(SUM, [1], -1), (SUM, [], -1)], ValueError, "got none of sum 1"),
        ([(LEAF, [1], 0), (LEAF, [], 0)], ValueError, "got 1 of leaf 0"),
        ([(LEAF, [], 0), (LEAF, [], 0)], ValueError, "exactly one node without parents, got 2: nodes 0, 1"),
        (
            [(PRODUCT, [1, 2], -1), (LEAF, [], 0), (LEAF, [], 2)],
            ValueError,
            "root, node 0, all 3 variables, got none of 1",
        ),
        ([(PRODUCT, [1], 4), (LEAF, [], 0)], ValueError, "-1 at sums and products, got 4 at product 0"),
        ([(SUM, [1], -1), (LEAF, [], -1)], IndexError, r"\[0, 1\) at leaves, got -1 at leaf 1"),
        ([(SUM, [5], -1), (LEAF, [], 0)], IndexError, r"child must be in \[0, 2\), got 5 at 0"),
        ([(7, [1], -1), (LEAF, [], 0)], IndexError, "kind must be in"),
    ],
)
def test_messages(nodes, error, message):
    with pytest.raises(error, match=message):
        Structure.from_csr(*csr(nodes), max(1, max(v for _, _, v in nodes if v != 4) + 1))


def test_hostile_arguments():
    good = csr([(SUM, [1, 2], -1), (LEAF, [], 0), (LEAF, [], 0)])
    for place, bad, error in [
        (0, [2.0, 0.0, 0.0], TypeError),
        (0, [], ValueError),
        (0, [[2, 0, 0]], ValueError),
        (1, [0, 2, 2], ValueError),
        (1, [0, 3, 2, 2], ValueError),
        (1, [1, 2, 2, 2], ValueError),
        (1, [0, 2**63 - 1, -2, 2], ValueError),  # differences that wrap are 2^63 - 1 and 4
        (2, ["1", "2"], TypeError),
        (2, [True, False], TypeError),
        (3, [-1, 0], ValueError),
        (3, [-1, 0, 2**40], IndexError),
        (3, np.array([2**64 - 1, 0, 0], np.uint64), IndexError),
    ]:
        with pytest.raises(error):
            Structure.from_csr(*good[:place], bad, *good[place + 1 :])
    for bad, error in ((0, ValueError), (2.5, TypeError), ("1", TypeError)):
        with pytest.raises(error, match="num_variables"):
            Structure.from_csr(*good, bad)
    with pytest.raises(ValueError, match="root, node 0, all 1000000000000 variables, got none of 1, 2, 3"):
        Structure.from_csr(*good, 10**12)
    made = Structure.from_csr(*good)
    with pytest.raises(TypeError, match=r"kind must be torch\.uint8"):
        Structure(made.kind.long(), made.first, made.child, made.variable, 1, made.program, made.origin)
    with pytest.raises(ValueError, match="first must have shape"):
        Structure(made.kind, made.first[1:], made.child, made.variable, 1, made.program, made.origin)


def test_scopes_stay_exact_when_hashes_collide(monkeypatch):
    true = _validity._random_words
    attempts = []

    def weak(n, attempt):  # at first only four different hashes
        attempts.append(attempt)
        return true(n, attempt) % np.uint64(4 if attempt < 3 else 2**63)

    monkeypatch.setattr(_validity, "_random_words", weak)
    s = tree(9, 2, 2)
    assert Structure.from_csr(s.kind, s.first, s.child, s.variable) == s
    assert attempts == [0, 1, 2, 3]
    # Equal hashes of different sets: {0, 3} and {1, 2}, with the hashes 1, 2, 3, 4.
    monkeypatch.setattr(
        _validity, "_random_words", lambda n, a: np.arange(1, n + 1, dtype=np.uint64) if a == 0 else true(n, a)
    )
    leaves = [(LEAF, [], v) for v in range(4)]
    nodes = [*leaves, (PRODUCT, [0, 3], -1), (PRODUCT, [1, 2], -1), (SUM, [4, 5], -1)]
    with pytest.raises(ValueError, match="sum 6 children of one scope"):
        Structure.from_csr(*csr(nodes))


@pytest.mark.parametrize(("sum_children", "nodes"), [(2, 10_111), (3, 116_785), (4, 695_149)])
def test_tree_sizes(sum_children, nodes):
    s = tree(69, sum_children, 2)
    assert s.num_nodes == nodes
    again = Structure.from_csr(s.kind, s.first, s.child, s.variable)
    assert again == s


@pytest.mark.parametrize("product_children", [2, 3, 4])
@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("sum_children", [1, 2, 3])
def test_full_trees_in_closed_form(sum_children, product_children, levels):
    s = tree(product_children**levels, sum_children, product_children, seed=3)
    branch = sum_children * product_children
    sums = sum(branch**j for j in range(levels))
    assert (s.num_leaves, s.num_sums, s.num_weights) == (branch**levels, sums, sum_children * sums)
    assert s.num_nodes == branch**levels + sums * (1 + sum_children)
    assert s.height == 2 * levels
    assert Structure.from_csr(s.kind, s.first, s.child, s.variable) == s


def test_tree_splits_evenly_and_differently():
    s = tree(70, 4, 3, seed=1)
    scopes = []
    for i in range(s.num_nodes):
        children = s.child[s.first[i] : s.first[i + 1]].tolist()
        scopes.append(frozenset([s.variable[i].item()]).union(*(scopes[c] for c in children)) - {-1})
        parts = sorted(len(scopes[c]) for c in children)
        if s.kind[i] == PRODUCT:
            assert parts[-1] - parts[0] <= 1
            assert len(parts) == min(3, sum(parts))
    root = s.child[s.first[-2] :].tolist()
    splits = {frozenset(scopes[c] for c in s.child[s.first[p] : s.first[p + 1]].tolist()) for p in root}
    assert len(splits) == 4


def test_trees_split_uniformly():
    """Over many seeds, every one of the three splits of four variables into two pairs is equally frequent."""
    seen = {}
    for seed in range(600):
        s = tree(4, 1, 2, seed=seed)
        leaves = s.variable[s.kind == LEAF].tolist()
        split = frozenset([frozenset(leaves[:2]), frozenset(leaves[2:])])
        seen[split] = seen.get(split, 0) + 1
    assert len(seen) == 3
    assert sum((n - 200) ** 2 / 200 for n in seen.values()) < 18.4  # chi-square of 2 degrees, p = 1e-4


def test_small_structures():
    assert tree(1, 5, 2).num_nodes == 1
    assert tree(2, 1, 2).num_nodes == 4
    assert rat(1, leaves=3).num_weights == 3
    assert hidden_tree(np.array([-1]), 4).num_nodes == 5


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_same_seed_same_structure(seed):
    assert tree(20, 3, 2, seed=seed) == tree(20, 3, 2, seed=seed)
    assert rat(20, seed=seed) == rat(20, seed=seed)
    assert tree(20, 3, 2, seed=seed) != tree(20, 3, 2, seed=7)
    assert rat(20, seed=seed) != rat(20, seed=7)


def test_splits_are_the_same_everywhere():
    """Written down once: a structure is data that outlives versions of numpy."""
    s = tree(6, 2, 2, seed=42)
    assert s.variable[s.kind == LEAF].tolist() == [4, 1, 1, 4, 0, 4, 4, 0, 5, 3, 3, 5, 3, 5, 5, 3, 4, 5, 4, 5] + [
        5,
        4,
        5,
        4,
        2,
        0,
        2,
        0,
        1,
        0,
        0,
        1,
        0,
        1,
        2,
        2,
        3,
        3,
        1,
        2,
    ]
    s = rat(6, replicas=2, depth=1, sums=1, leaves=1, seed=42)
    assert s.variable[s.kind == LEAF].tolist() == [2, 0, 1, 3, 4, 5, 3, 2, 5, 1, 0, 4]


def test_rat_in_closed_form():
    s = rat(69, replicas=8, depth=3, sums=12, leaves=12)
    assert s.num_leaves == 8 * 69 * 12
    assert s.num_weights == 8 * 4 * 12 * 144 + 8 * 2 * 12 * 144 + 8 * 144
    assert s.num_weights + s.num_leaves == 90_720
    assert s.num_sums == 8 * 6 * 12 + 1
    assert s.height == 7


@pytest.mark.parametrize(("function", "bad", "error"), [
    (tree, {"num_variables": 0}, ValueError),
    (tree, {"sum_children": 0}, ValueError),
    (tree, {"product_children": 1}, ValueError),
    (tree, {"product_children": 2.0}, TypeError),
    (tree, {"seed": -1}, ValueError),
    (tree, {"seed": 1.5}, TypeError),
    (tree, {"sum_children": 10**6, "num_variables": 1000}, ValueError),
    (rat, {"depth": 0}, ValueError),
    (rat, {"leaves": True}, TypeError),
    (rat, {"replicas": 0}, ValueError),
    (rat, {"sums": -3}, ValueError),
    (rat, {"seed": 2**64}, ValueError),
    (rat, {"num_variables": 2**60}, ValueError),
    (rat, {"leaves": 10**5}, ValueError),
    (rat, {"sums": np.int64(10**5)}, ValueError),
    (rat, {"replicas": 10**12}, ValueError),
])  # fmt: skip
def test_makers_refuse(function, bad, error):
    arguments = {"num_variables": 16} | ({"sum_children": 2} if function is tree else {})
    with pytest.raises(error, match=next(iter(bad))):
        function(**arguments | bad)


@settings(deadline=None)
@given(d=st.integers(1, 20), depth=st.integers(1, 6), size=st.tuples(*[st.integers(1, 3)] * 3))
def test_size_of_rat_before_it_is_made(d, depth, size):
    replicas, sums, leaves = size
    made = rat(d, replicas, depth, sums, leaves)
    assert _rat._size(d, replicas, depth, sums, leaves) == made.num_weights + made.num_leaves


def test_hidden_states_beyond_memory_are_refused(monkeypatch):
    X, sizes = np.arange(40).reshape(10, 4) % 2, []
    for hidden in (10**5, np.int32(10**5), 10**30):
        with pytest.raises(ValueError, match=r"hidden must make fewer than 2\^31 weights and leaves, got \d+"):
            hclt(X, hidden)
    monkeypatch.setattr(_hclt, "check_size", lambda _, size: sizes.append(size))
    made = hclt(X, 5)
    assert sizes == [made.num_weights + made.num_leaves]


def expand(structure):
    """Nodes of the graph {node: (kind, [(child, weight number or None)], leaf number)}, from the program alone."""
    found = regions(structure.program)
    nodes = {}

    def component(r, i):
        return found[r].first_node + i

    def put(node, what):
        assert nodes.setdefault(node, what) == what

    leaf_node = torch.nonzero(structure.kind == LEAF).flatten().tolist()
    for region in found:
        for k in range(region.outputs):
            factors = []
            for term in region.terms:
                match term:
                    case Leaves(variables, first_leaves):
                        for v, leaf in zip(variables, first_leaves, strict=True):
                            node = leaf_node[leaf + k]
                            put(node, (LEAF, v, ()))
                            factors.append(node)
                    case Mixture(below, first_weight, stride, first_sum):
                        j = range(found[below].outputs)
                        assert stride == len(j)
                        edges = tuple((component(below, i), first_weight + k * stride + i) for i in j)
                        put(first_sum + k, (SUM, -1, edges))
                        factors.append(first_sum + k)
                    case Pairs(first_weight, pairs):
                        edges, total = [], sum(found[a].outputs * found[b].outputs for a, b in pairs)
                        for a, b in pairs:
                            for i, j in itertools.product(range(found[a].outputs), range(found[b].outputs)):
                                edges.append(
                                    ((component(a, i), component(b, j)), first_weight + k * total + len(edges))
                                )
                        put(region.first_node + k, (SUM, -1, tuple(edges)))
                        factors.append(region.first_node + k)
            if len(factors) > 1:
                put(region.first_node + k, (PRODUCT, -1, tuple((f, None) for f in factors)))
            else:
                assert factors == [region.first_node + k]
    return nodes


@pytest.mark.parametrize(
    "make",
    [
        lambda: rat(1, leaves=2),
        lambda: rat(2, replicas=2, depth=3, sums=2, leaves=3),
        lambda: rat(5, replicas=3, depth=3, sums=2, leaves=3, seed=1),
        lambda: rat(9, replicas=2, depth=2, sums=4, leaves=1, seed=2),
        lambda: rat(16, replicas=1, depth=4, sums=3, leaves=2, seed=3),
        lambda: hidden_tree(np.array([-1]), 3),
        lambda: hidden_tree(np.array([1, -1, 1, 2, 2]), 3),
        lambda: hidden_tree(np.array([-1, 0, 1, 2]), 1),
        lambda: hidden_tree(np.array([-1, 0, 0, 0]), 2),
    ],
)
def test_program_is_the_graph(make):
    s = make()
    assert Structure.from_csr(s.kind, s.first, s.child, s.variable).child.equal(s.child)  # valid
    first_weight = torch.cumsum(s.first.diff() * (s.kind == SUM), 0) - s.first.diff() * (s.kind == SUM)
    nodes = expand(s)
    used = set()
    for node, (kind, variable, edges) in nodes.items():
        children = s.child[s.first[node] : s.first[node + 1]].tolist()
        assert (kind, variable) == (s.kind[node].item(), s.variable[node].item())
        assert len(edges) == len(children)
        for position, (child, (want, weight)) in enumerate(zip(children, edges, strict=True)):
            if isinstance(want, tuple):  # the product of a pair: it appears in the graph only
                assert s.kind[child] == PRODUCT
                assert s.child[s.first[child] : s.first[child + 1]].tolist() == list(want)
                used.add(child)
            else:
                assert child == want
            if weight is not None:
                assert weight == first_weight[node] + position
    assert set(nodes) | used == set(range(s.num_nodes))
    last = regions(s.program)[-1]
    assert (last.outputs, last.first_node) == (1, s.num_nodes - 1)


@pytest.mark.parametrize("damage", ["short", "kind", "ahead", "empty"])
def test_programs_that_are_none(damage):
    program = rat(4, replicas=1, depth=1, sums=2, leaves=3).program
    bad = {
        "short": program[:-1],
        "kind": torch.where(torch.arange(len(program)) == 3, 9, program),
        "ahead": torch.where(torch.arange(len(program)) == len(program) - 1, 2, program),
        "empty": torch.tensor([1, 0, 0]),
    }[damage]
    with pytest.raises(ValueError, match="program must"):
        regions(bad)


def test_state():
    for s in (rat(5, replicas=2, sums=2, leaves=2), tree(5, 2, 2), Structure.from_csr([0], [0, 0], [], [0])):
        state = s.state_dict()
        assert all(torch.is_tensor(x) for x in state.values())
        again = Structure.from_state_dict(state)
        assert again == s
        assert repr(again) == repr(s)
    state["kind"] = torch.tensor([1], dtype=torch.uint8)
    with pytest.raises(ValueError, match="got none of product 0"):
        Structure.from_state_dict(state)
    assert s != "a structure"


def test_equal_structures_are_equal_only():
    a = Structure.from_csr(*csr([(LEAF, [], 0), (LEAF, [], 0), (SUM, [0, 1], -1)]))
    assert a == Structure.from_csr(*csr([(SUM, [1, 2], -1), (LEAF, [], 0), (LEAF, [], 0)]))
    assert a != Structure.from_csr(*csr([(LEAF, [], 0), (LEAF, [], 0), (SUM, [1, 0], -1)]))
