"""The tests of chains find the mistakes that are easily made."""

import functools
import math

import numpy as np
import pytest
from spn_chains import SEED, SPLIT, Copies, case, chi_square, trees

from pyfast.reference import spn as reference
from pyfast.reference.spn import LEAF, PRODUCT, SUM, Counts, Tree


class Slow:
    """The kernels in Python, one sample's tree given all others', and what goes wrong with them.

    mistake: "self", counts that hold the sample itself; "scores", proposals from such counts; "normaliser", weights
    that are not divided by their sum; "shared", one array for all candidates; "sign", acceptance of what is worse.
    """

    def __init__(self, name, others, n, mistake=None):
        self.c, self.mistake = case(name), mistake
        self.empty = Counts(self.c.net, self.c.law, self.c.X, [None] * len(others))
        self.net, self.trees, self.row = self.c.net, trees(name), self.c.X[n].tolist()
        self.n, self.Z = n, [None if i == n else self.trees[t] for i, t in enumerate(others)]
        self.kind = self.net.kind.tolist()
        self.below = [self.net.children(v) for v in range(len(self.kind))]
        self.where = {t: i for i, t in enumerate(self.trees)}

    def look(self, t):
        """Weights and likelihoods as this kernel sees them while the sample's tree is t."""
        self.w, self.f = self.see(t if self.mistake == "self" else None)
        self.s = self.scores(t if self.mistake == "scores" else None)

    @functools.cache  # noqa: B019
    def see(self, t):
        Z = [self.trees[t] if i == self.n and t is not None else z for i, z in enumerate(self.Z)]
        counts = Counts(self.net, self.c.law, self.c.X, Z)
        free = self.mistake == "normaliser"
        w = {
            s: [counts.alpha[s] + c if free else counts.weight(s, k) for k, c in enumerate(cs)]
            for s, cs in counts.c.items()
        }
        return w, {v: math.exp(counts.leaf(v, self.row[counts.variable[v]])) for v in counts.x}

    @functools.cache  # noqa: B019
    def scores(self, t):
        """How well a child would fit if all variables were independent: from what the samples that pass it show."""
        Z = [self.trees[t] if i == self.n and t is not None else z for i, z in enumerate(self.Z)]
        X, score = self.c.X.tolist(), {}
        for v, kind in enumerate(self.kind):
            for k, c in enumerate(self.below[v] if kind == SUM else ()):
                passing = [x for x, z in zip(X, Z, strict=True) if z and self.passes(z, c)]
                score[v, k] = 1.0
                for leaf in self.some_leaves(c):
                    d = int(self.net.variable[leaf])
                    seen = [x[d] for x in passing if not math.isnan(x[d])]
                    counts = self.empty
                    log = reference.log_predictive(counts.family[leaf], counts.prior[leaf], seen, self.row[d])
                    score[v, k] *= math.exp(log)
        return score

    def passes(self, z, node):
        choices, waiting = dict(z.choices), [len(self.kind) - 1]
        while waiting:
            v = waiting.pop()
            if v == node:
                return True
            waiting += [self.below[v][choices[v]]] if self.kind[v] == SUM else self.below[v]
        return False

    def some_leaves(self, v):
        """One leaf for every variable below."""
        if self.kind[v] == LEAF:
            return [v]
        below = self.below[v][:1] if self.kind[v] == SUM else self.below[v]
        return [leaf for c in below for leaf in self.some_leaves(c)]

    def walk(self, v, z, rng=None):
        """The likelihood below v, by the choices in z; with rng, these are drawn first, into z."""
        if self.kind[v] == LEAF:
            return self.f[v]
        if self.kind[v] == PRODUCT:
            return math.prod([self.walk(c, z, rng) for c in self.below[v]])
        if rng is not None:
            p = np.array(self.w[v])
            z[v] = int(np.searchsorted(np.cumsum(p), rng.random() * p.sum()))
        return self.walk(self.below[v][z[v]], z, rng)

    def tree(self, z):
        choices, waiting = [], [len(self.kind) - 1]
        leaves = []
        while waiting:
            v = waiting.pop()
            if self.kind[v] == LEAF:
                leaves.append(v)
            elif self.kind[v] == PRODUCT:
                waiting += self.below[v][::-1]
            else:
                choices.append((v, z[v]))
                waiting.append(self.below[v][z[v]])
        return self.where[Tree(tuple(choices), tuple(leaves))]

    def block(self, t, rng):
        value = {}
        for v, kind in enumerate(self.kind):
            if kind == LEAF:
                value[v] = self.f[v]
            elif kind == PRODUCT:
                value[v] = math.prod(value[c] for c in self.below[v])
            else:
                value[v] = sum(w * value[c] for w, c in zip(self.w[v], self.below[v], strict=True))
        z = {}
        for v, kind in enumerate(self.kind):
            if kind == SUM:
                p = np.array([w * value[c] for w, c in zip(self.w[v], self.below[v], strict=True)])
                z[v] = int(np.searchsorted(np.cumsum(p), rng.random() * p.sum()))
        return self.tree(z)

    def topdown(self, t, rng):
        old, new, root = dict(self.trees[t].choices), {}, len(self.kind) - 1
        odds = self.walk(root, new, rng) / self.walk(root, old)
        accept = rng.random() < (1 / odds if self.mistake == "sign" else odds)
        return self.tree(new) if accept else t

    def informed(self, t, rng):
        """Proposals by weight times score, of the whole tree; odds are what is left over."""

        def walk(v, z, fresh):
            if self.kind[v] == LEAF:
                return self.f[v]
            if self.kind[v] == PRODUCT:
                return math.prod([walk(c, z, fresh) for c in self.below[v]])
            p = np.array([w * self.s[v, k] for k, w in enumerate(self.w[v])])
            if fresh:
                z[v] = int(np.searchsorted(np.cumsum(p), rng.random() * p.sum()))
            return p.sum() / self.s[v, z[v]] * walk(self.below[v][z[v]], z, fresh)

        new, root = {}, len(self.kind) - 1
        odds = walk(root, new, True) / walk(root, dict(self.trees[t].choices), False)
        return self.tree(new) if rng.random() < odds else t

    def isir(self, t, rng):
        root = len(self.kind) - 1
        old = dict(self.trees[t].choices)
        candidates, p, array = [], [], {}
        for k, c in enumerate(self.below[root]):
            if k == old[root]:
                z = old
                like = self.walk(c, z)
            else:
                z = array if self.mistake == "shared" else {}
                like = self.walk(c, z, rng)
            candidates.append(z)
            p.append(self.w[root][k] * like)
        k = int(np.searchsorted(np.cumsum(p), rng.random() * sum(p)))
        return self.tree({**candidates[k], root: k})

    def __call__(self, kernel, starts, rng):
        ends = []
        for t in starts.tolist():
            self.look(t)
            ends.append(getattr(self, kernel)(t, rng))
        return np.array(ends)


SETTINGS = [  # the trees of the samples that stay; that of sample 0 is drawn
    ("tree-tables", (0, 4, 2)),
    ("shared-tables", (0, 1, 8)),
    ("shared-densities", (0, 7, 2)),
]


def kept(setting, update, draws):
    """The p-value of p(T_0 | all else) after one update that starts from it."""
    name, others = setting
    c, Z = case(name), [trees(name)[t] for t in others]
    law = reference.log_conditional(c.net, c.law, c.X, Z, 0)[1].softmax(0).numpy()
    rng = np.random.default_rng(SEED)
    starts = rng.choice(len(law), draws, p=law)
    return chi_square(np.bincount(update(starts, rng), minlength=len(law)), law)


@pytest.mark.parametrize("kernel", ["block", "topdown", "isir", "informed"])
@pytest.mark.parametrize("setting", [SETTINGS[0], SETTINGS[2]])
def test_slow_kernels_keep_the_conditional(kernel, setting):
    assert kept(setting, functools.partial(Slow(*setting, 0), kernel), 4000) > 1e-4


@pytest.mark.parametrize(
    "mistake, kernel, setting, draws",
    [  # "self" hides from the block kernel: a weight that counts the sample itself still leaves Polya's urn as it is
        ("self", "topdown", SETTINGS[2], 12000),
        ("scores", "informed", SETTINGS[0], 16000),
        ("normaliser", "block", SETTINGS[0], 2000),
        ("shared", "isir", SETTINGS[1], 4000),
        ("sign", "topdown", SETTINGS[0], 2000),
        ("sign", "topdown", SETTINGS[2], 2000),
    ],
)
def test_mistakes_do_not_pass(mistake, kernel, setting, draws):
    assert kept(setting, functools.partial(Slow(*setting, 0, mistake), kernel), draws) < 1e-4


@pytest.mark.parametrize("kernel", [k for k, _ in SPLIT], ids=[n for _, n in SPLIT])
@pytest.mark.parametrize("setting", SETTINGS[:2])
def test_kernels_keep_the_conditional(kernel, setting):
    def update(starts, rng):
        copies = Copies(setting[0], len(starts))
        copies.set(np.stack([starts, *(np.full_like(starts, t) for t in setting[1][1:])], 1))
        copies.state.sweep(kernel, last=1)
        return copies.get()[:, 0]

    assert kept(setting, update, 10000) > 1e-4
