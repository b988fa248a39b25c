"""Where learning begins on a tree of hidden variables: each hidden state a cluster of what its column depends on."""

import torch
from torch import Tensor

from pyfast.spn._chow_liu import BINS, discrete_information, quantile_codes
from pyfast.spn._columns import Columns
from pyfast.spn._fit import OWN, TABLE
from pyfast.spn._hyper import uniforms
from pyfast.spn._network import Counts, Network
from pyfast.spn._program import Leaves, Mixture, Region, regions
from pyfast.spn._rows import UniqueRows

_FEATURES = 32  # that a column's clusters look at
_LARGEST = 511  # of a feature, an integer: scores are sums of integers below 2^24, the same on every machine
_ROWS, _PAIRED = 4096, 16384  # that centres are made from, and that dependence is measured on
_ROUNDS = 6  # of k-means
_AT_ONCE = 1 << 22  # scores


def clustered(network: Network, rows: UniqueRows, seed: int, what: int) -> Counts | None:
    """Counts of the state in which every hidden variable is a cluster of its row; None if the network is no such tree.

    A chain may begin anywhere; from here it has much less far to go than from parameters drawn from the prior.

    Args:
        network: of a structure that :func:`pyfast.spn.hclt` makes, with any tree.
        rows: the encoded table.
        seed: of the random numbers.
        what: the middle part of their names.

    Source: Liu, Zhang, Van den Broeck, "Scaling up probabilistic circuits by latent variable distillation", ICLR 2023,
        for hidden states that are clusters; theirs come from another model's features, ours from the columns that share
        most information with a hidden variable's own.
    """
    found = regions(network.structure.program)
    if not found or not all(_is_hidden(region, last=i == len(found) - 1) for i, region in enumerate(found)):
        return None
    variable = {i: t.variables[0] for i, r in enumerate(found) for t in r.terms if isinstance(t, Leaves)}
    states = [1] * network.structure.num_variables
    for i, v in variable.items():
        states[v] = found[i].outputs
    return _counts(network, found, variable, rows, _cluster(network.columns, rows, max(states), seed, what), states)


def _is_hidden(region: Region, last: bool) -> bool:
    """Whether it is a hidden variable's: one leaf for each state and mixtures, or (the root) one mixture."""
    own = [t for t in region.terms if isinstance(t, Leaves)]
    mixed = [t for t in region.terms if isinstance(t, Mixture)]
    if len(own) + len(mixed) != len(region.terms):
        return False
    return len(own) == 1 and len(own[0].variables) == 1 if own else last and region.outputs == len(mixed) == 1


def _counts(
    network: Network, found: list[Region], variable: dict[int, int], rows: UniqueRows, state: Tensor, states: list[int]
) -> Counts:
    counts, times = network.no_counts(), rows.multiplicity
    nothing = torch.zeros(len(times), dtype=torch.int64)

    def place(region: int) -> Tensor:  # of each row, among the components of a region
        return state[:, variable[region]] % states[variable[region]] if region in variable else nothing

    for i, region in enumerate(found):
        here = place(i)
        for term in region.terms:
            if isinstance(term, Leaves):
                _observe(network, counts.leaves, term, here, rows)
            elif isinstance(term, Mixture):
                at = term.first_weight + here * term.row_stride + place(term.region)
                counts.weights.index_add_(0, at, times)
    return counts


def _observe(network: Network, leaves: Tensor, term: Leaves, here: Tensor, rows: UniqueRows) -> None:
    """As the kernels do: a table's counts, or the number, sum and (in two words) sum of squares of x in quanta."""
    v = term.variables[0]
    x = rows.rows[:, v].double()
    there = ~x.isnan()
    x, times = x[there], rows.multiplicity[there]
    first = network.leaf_first[term.first_leaves[0] + here[there]]
    if network.columns.family[v] == TABLE:
        leaves.index_add_(0, first + x.long(), times)
        return
    if network.columns.family[v] == OWN:
        density = network.columns.densities[v]
        assert density is not None
        leaves.index_add_(0, first, times)
        seen = torch.from_numpy(density.statistics(x.numpy())) * torch.tensor(network.columns.quanta[v])
        for i, value in enumerate(seen.round().long().T):
            leaves.index_add_(0, first + 1 + i, times * value)
        return
    q = (x * network.columns.quantum[v]).round().long()
    square = q * q
    for i, value in enumerate((torch.ones_like(q), q, square & ((1 << 30) - 1), square >> 30)):
        leaves.index_add_(0, first + i, times * value)


def _cluster(columns: Columns, rows: UniqueRows, k: int, seed: int, what: int) -> Tensor:
    """(unique rows, D): each row's cluster in each column, by k-means on the features that tell most of the column."""
    value, of = _features(rows.rows, columns)
    part = _some(rows, _PAIRED)
    worth = _information(rows.rows[part], columns)[:, of]  # (D, features)
    weight, chosen = worth.topk(min(_FEATURES, worth.shape[1]))
    spread, mean = _spread(value, rows.multiplicity)
    scale = weight.clamp_min(0).sqrt() / spread[chosen]
    reach = torch.maximum(value.amax(0) - mean, mean - value.amin(0))[chosen] * scale
    scale = _LARGEST / reach.amax(1, keepdim=True).clamp_min(1e-300) * scale
    sample = value[_some(rows, _ROWS)]
    out = torch.empty(len(value), len(columns), dtype=torch.int64)
    step = max(1, _AT_ONCE // (len(sample) * k))
    draws = uniforms(seed, what, len(columns) * k, 1 + _ROUNDS).view(1 + _ROUNDS, len(columns), k)
    for first in range(0, len(columns), step):
        some = slice(first, first + step)

        def look(x: Tensor, some: slice = some) -> Tensor:  # (columns, rows, features), integers
            return ((x - mean).float()[:, chosen[some]] * scale[some].float()).round_().transpose(0, 1)

        centres = _centres(look(sample), (draws[:, some] * len(sample)).long())
        for x, to in zip(value.split(_ROWS), out.split(_ROWS), strict=True):
            to[:, some] = _nearest(look(x), centres).T
    return out


def _centres(x: Tensor, draws: Tensor) -> Tensor:
    """(columns, K, features) of (columns, rows, features); empty clusters begin anew at a row drawn."""
    columns, _, f = x.shape
    k = draws.shape[2]
    shift = k * torch.arange(columns)[:, None]

    def drawn(i: int) -> Tensor:
        return x.gather(1, draws[i][:, :, None].expand(-1, -1, f))

    centres = drawn(0)
    for i in range(_ROUNDS):
        at = (_nearest(x, centres) + shift).flatten()
        size = at.bincount(minlength=columns * k).view(columns, k, 1)
        total = torch.zeros(columns * k, f).index_add_(0, at, x.reshape(-1, f)).view(columns, k, f)
        centres = torch.where(size > 0, (total / size.clamp_min(1)).round(), drawn(1 + i))
    return centres


def _nearest(x: Tensor, centres: Tensor) -> Tensor:
    """(columns, rows): which centre, the first of equals."""
    squares = -(centres * centres).sum(2)[:, None, :]
    return torch.baddbmm(squares, x, centres.transpose(1, 2), alpha=2).argmax(2)


def _features(x: Tensor, columns: Columns) -> tuple[Tensor, Tensor]:
    """(rows, features) without gaps, and each one's column: a table's categories but the first, or the value itself."""
    value, of = [], []
    for j, (family, width) in enumerate(zip(columns.family.tolist(), columns.width.tolist(), strict=True)):
        there = x[:, j].double()
        gap = there.isnan()
        for code in range(1, max(width, 2)) if family == TABLE else (-1,):
            column = there if code < 0 else (there == code).double()
            usual = column[~gap].mean() if not gap.all() else torch.zeros((), dtype=torch.float64)
            value.append(torch.where(gap, usual, column))
            of.append(j)
    return torch.stack(value, 1), torch.tensor(of)


def _spread(value: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviation and mean of each feature; rounded, so that the order of sums does not show."""
    weight = times.double() / times.sum()
    mean = (weight @ value).mul(2.0**30).round() / 2.0**30
    spread = (weight @ (value - mean) ** 2).sqrt()
    spread = torch.where(spread > 0, spread, 1.0)
    return spread.mul(2.0**30).round().clamp_min(1) / 2.0**30, mean


def _information(x: Tensor, columns: Columns) -> Tensor:
    """(D, D) mutual information of the columns of some rows, with their entropies on the diagonal."""
    codes = x.double()
    table = columns.family == TABLE
    for j in torch.nonzero(~table).flatten().tolist():
        codes[:, j] = quantile_codes(codes[:, j])
    found = discrete_information(codes, torch.where(table, columns.width, BINS).numpy(), 1.0)
    return torch.from_numpy(found).mul(2.0**30).round() / 2.0**30


def _some(rows: UniqueRows, n: int) -> Tensor:
    """Numbers of at most n rows, evenly spread over all."""
    total = int(rows.multiplicity.sum())
    n = min(n, total)
    return torch.searchsorted(rows.multiplicity.cumsum(0), torch.arange(n) * total // n, right=True)
