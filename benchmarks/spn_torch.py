"""Sum-product networks of zeros and ones in plain PyTorch: what the kernels race against."""

import copy
import math

import torch
from torch.utils._pytree import tree_map_only

from pyfast import spn
from pyfast.spn._network import Counts, Parameters

TINY = torch.finfo(torch.float32).tiny


def choose(p):
    """One place of each last dimension, with these odds."""
    c = p.cumsum(-1)
    u = torch.rand(c.shape[:-1]).unsqueeze(-1) * c[..., -1:]
    return torch.searchsorted(c, u.to(c.dtype), right=True).squeeze(-1).clamp_max(p.shape[-1] - 1)


class Torch:
    """What both kinds of network have in PyTorch: parameters drawn all at once."""

    def __init__(self, network):
        self.network, self.structure = network, network.structure
        self.num_leaves, self.num_weights = self.structure.num_leaves, self.structure.num_weights
        children, runs = torch.unique_consecutive(network.num_children, return_counts=True)
        self.blocks = list(zip(children.tolist(), (children * runs).tolist(), strict=True))  # of sums of one size
        self.edge_sum, self.leaf_prior = network.sums[network.weight_sum], network.leaf_prior

    def to(self, device):
        """The same on a device, for calls under ``torch.device(device)``."""
        twin = copy.copy(self)
        vars(twin).update(moved(vars(self), device))
        return twin

    def draw(self, counts, law):
        """Weights and leaves given statistics."""
        gammas = torch._standard_gamma(counts.weights + law.alpha[self.edge_sum]).clamp_min_(1e-300)
        parts = gammas.split([size for _, size in self.blocks])
        parts = [x.view(-1, k) for x, (k, _) in zip(parts, self.blocks, strict=True)]
        weights = torch.cat([(x / x.sum(1, keepdim=True)).flatten() for x in parts])
        prior = law.prior[self.leaf_prior[:, None] + torch.arange(2)]
        chances = torch._standard_gamma(counts.leaves.view(-1, 2) + prior).clamp_min_(1e-300)
        leaves = (chances / chances.sum(1, keepdim=True)).log().flatten()
        return Parameters(weights.float(), leaves.float())

    def gibbs(self, rows, counts, law):
        """One complete sweep."""
        parameters = self.draw(counts, law)
        return parameters, *self.sweep(rows, self.layout(*parameters[:2]))


class TorchRat(Torch):
    """A RAT-SPN layer by layer: outer products, one batched matrix product a layer, values scaled by their maxima.

    Regions 2p and 2p + 1 of a layer are what region p above splits into.
    """

    def __init__(self, network):
        super().__init__(network)
        found = spn.regions(self.structure.program)
        term = found[-1].terms[0]
        level = [r for pair in term.regions for r in pair]
        size = found[level[0]].outputs * found[level[1]].outputs
        self.index = [term.first_weight + torch.arange(len(term.regions) * size).view(-1, 1, size)]
        while isinstance(found[level[0]].terms[0], spn.Pairs):
            terms, outputs = [found[r].terms[0] for r in level], found[level[0]].outputs
            first, below = torch.tensor([t.first_weight for t in terms]), [t.regions[0] for t in terms]
            size = math.prod(found[r].outputs for r in below[0])
            self.index.append(first[:, None, None] + torch.arange(outputs * size).view(outputs, size))
            level = [r for pair in below for r in pair]
        self.index.reverse()  # (regions, outputs, products), from the leaves up
        terms, d = [found[r].terms[0] for r in level], self.structure.num_variables
        widest, components = max(len(t.variables) for t in terms), torch.arange(found[level[0]].outputs)
        self.variables = torch.full((len(terms), widest), d)
        self.leaves = torch.full((len(terms), len(components), widest), self.num_leaves)
        self.wide = torch.full(
            (len(terms), d, len(components)), self.num_leaves
        )  # the same for a product with all rows
        for q, t in enumerate(terms):
            self.variables[q, : len(t.variables)] = torch.tensor(t.variables)
            leaves = torch.tensor(t.first_leaves)[:, None] + components
            self.leaves[q, :, : len(t.variables)] = leaves.T
            self.wide[q, torch.tensor(t.variables)] = leaves

    def layout(self, weights, leaves):
        """Parameters as the products want them."""
        zero, one = torch.cat([leaves, leaves.new_zeros(2)]).view(-1, 2)[self.wide].unbind(-1)
        return one - zero, zero.sum(1, keepdim=True), *(weights[i] for i in self.index)

    def up(self, rows, slope, bias, *weights):
        """Values of the regions below each layer, the root's products, log values of the replicas."""
        v = torch.baddbmm(bias, rows.expand(len(bias), *rows.shape), slope)
        top = v.amax(-1, keepdim=True)
        v, below = (v - top).exp(), []
        for i, w in enumerate(weights):
            below.append(v)
            top = top[0::2] + top[1::2]
            products = (v[0::2].unsqueeze(-1) * v[1::2].unsqueeze(-2)).flatten(2)
            v = torch.bmm(products, w.mT)
            if i < len(weights) - 1:
                most = v.amax(-1, keepdim=True).clamp_min(TINY)
                v, top = v / most, top + most.log()
        return below, products, (v.clamp_min(TINY).log() + top).squeeze(-1)

    def log_prob(self, rows, layout):
        """The root's."""
        return self.up(rows, *layout)[-1].logsumexp(0)

    def sweep(self, rows, layout):
        """An induced tree for every row: its statistics, and log likelihoods."""
        below, products, roots = self.up(rows, *layout)
        n, weights = torch.arange(len(rows)), layout[2:]
        r = choose((roots - roots.amax(0)).exp().T)
        z = choose(products[r, n] * weights[-1][r, 0])

        def odds(level, region, k):
            left, right = below[level][2 * region, n[:, None]], below[level][2 * region + 1, n[:, None]]
            return (left.unsqueeze(-1) * right.unsqueeze(-2)).flatten(2) * weights[level][region, k]

        leaf, variable, taken = self.down(r, z, odds)
        value = torch.nn.functional.pad(rows, (0, 1)).gather(1, variable.flatten(1)).flatten().long()
        counted = torch.bincount(2 * leaf.flatten() + value, minlength=2 * self.num_leaves + 2)[:-2]
        return Counts(torch.bincount(torch.cat(taken), minlength=self.num_weights), counted), roots.logsumexp(0)

    def down(self, r, z, odds):
        """Leaves of every row, their variables, and the weights passed, below product z of replica r."""
        taken, region, k = [self.index[-1][r, 0, z]], r[:, None], z[:, None]
        for level in range(len(self.index) - 1, -1, -1):
            if level < len(self.index) - 1:
                z = choose(odds(level, region, k))
                taken.append(self.index[level][region, k, z].flatten())
                k = z
            below = (self.index[level - 1] if level else self.leaves).shape[1]
            region = torch.stack([2 * region, 2 * region + 1], -1).flatten(1)
            k = torch.stack([k // below, k % below], -1).flatten(1)
        return self.leaves[region, k], self.variables[region], taken

    def sample(self, n, leaves, layout):
        """Rows with nothing given."""
        size = self.index[-1].shape[-1]
        z = torch.multinomial(layout[-1].flatten(), n, replacement=True)
        leaf, variable, _ = self.down(z // size, z % size, lambda level, region, k: layout[2 + level][region, k])
        chance = torch.nn.functional.pad(leaves[1::2], (0, 1)).exp()[leaf].flatten(1)
        rows = torch.empty(n, self.structure.num_variables + 1)
        return rows.scatter_(1, variable.flatten(1), (torch.rand(chance.shape) < chance).float())[:, :-1]


class TorchHclt(Torch):
    """A hidden Chow-Liu tree region by region, each with all rows."""

    def __init__(self, network):
        super().__init__(network)
        *self.regions, root = spn.regions(self.structure.program)
        self.mixtures = {
            t.region: t
            for region in [*self.regions, root]
            for t in region.terms[isinstance(region.terms[0], spn.Leaves) :]
        }
        self.k = self.regions[0].outputs
        self.index = []
        for r in range(len(self.regions)):
            t, outputs = self.mixtures[r], 1 if r == len(self.regions) - 1 else self.k
            self.index.append(t.first_weight + t.row_stride * torch.arange(outputs)[:, None] + torch.arange(self.k))
        self.variable = [region.terms[0].variables[0] for region in self.regions]
        self.leaf = torch.tensor([region.terms[0].first_leaves[0] for region in self.regions])[:, None] + torch.arange(
            self.k
        )

    def layout(self, weights, leaves):
        """Parameters as the products want them."""
        return leaves.view(-1, 2)[self.leaf].exp(), [weights[i] for i in self.index]

    def up(self, rows, chances, weights):
        """Values of all regions; log likelihoods."""
        values, total = [], 0
        for r, region in enumerate(self.regions):
            zero, one = chances[r].unbind(-1)
            v = torch.addcmul(zero, rows[:, self.variable[r], None], one - zero)
            for t in region.terms[1:]:
                v = v * (values[t.region] @ weights[t.region].mT)
            most = v.amax(1, keepdim=True).clamp_min(TINY)
            values.append(v / most)
            total = total + most.log()
        return values, ((values[-1] @ weights[-1].mT).clamp_min(TINY).log() + total).squeeze(1)

    def log_prob(self, rows, layout):
        """The root's."""
        return self.up(rows, *layout)[-1]

    def sweep(self, rows, layout):
        """An induced tree for every row: its statistics, and log likelihoods."""
        (_, weights), (values, found) = layout, self.up(rows, *layout)
        chosen = {len(self.regions) - 1: torch.zeros(len(rows), dtype=torch.int64)}  # output of the mixture over each
        leaves, edges = (
            torch.zeros(2 * self.num_leaves, dtype=torch.int64),
            torch.empty(self.num_weights, dtype=torch.int64),
        )
        for r in range(len(self.regions) - 1, -1, -1):
            above = chosen.pop(r)
            z = choose(weights[r][above] * values[r])
            edges[self.index[r]] = torch.bincount(above * self.k + z, minlength=weights[r].numel()).view_as(weights[r])
            seen = torch.bincount(2 * z + rows[:, self.variable[r]].long(), minlength=2 * self.k)
            leaves.view(-1, 2)[self.leaf[r]] = seen.view(-1, 2)
            for t in self.regions[r].terms[1:]:
                chosen[t.region] = z
        return Counts(edges, leaves), found


def moved(tree, device):
    """All tensors on a device."""
    return tree_map_only(torch.Tensor, lambda x: x.to(device), tree)
