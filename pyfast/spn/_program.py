"""The dense form of a network: regions of equally many components, joined by whole matrices of weights."""

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from torch import Tensor


class Leaves(NamedTuple):
    """Component i is the product over variables v of leaf ``first_leaf_v + i``."""

    variables: tuple[int, ...]
    first_leaves: tuple[int, ...]


class Mixture(NamedTuple):
    """Component k is the sum over j of ``weights[first_weight + k row_stride + j]`` times component j of a region."""

    region: int
    first_weight: int
    row_stride: int
    first_sum: int  # node of component 0


class Pairs(NamedTuple):
    """Component k is a sum over pairs of regions and all their i, j of a weight times left i times right j.

    Weights lie in this order from ``first_weight`` on: component k, pair, i, j.
    """

    first_weight: int
    regions: tuple[tuple[int, int], ...]


Term: TypeAlias = Leaves | Mixture | Pairs


class Region(NamedTuple):
    """Component k of a region is the product of its terms' components k, and node ``first_node + k`` of the graph."""

    outputs: int
    first_node: int
    terms: tuple[Term, ...]


def regions(program: Tensor) -> list[Region]:
    """The regions of a program, those below before those above.

    Args:
        program: (p,), int64: for every region ``outputs, first_node, number of terms`` and its terms, which are ``0,
            number of variables, (variable, first leaf), ...`` or ``1, region, first weight, row stride, first sum`` or
            ``2, number of pairs, first weight, (left region, right region), ...``.

    Returns:
        As many regions as there are.

    Raises:
        ValueError: if the program ends too early, has a term of another kind or a region without outputs or terms, or
            one that reads a region which does not come before it.

    Example:
        >>> import pyfast
        >>> structure = pyfast.spn.rat(4, replicas=1, depth=1, sums=2, leaves=3)
        >>> [region.outputs for region in pyfast.spn.regions(structure.program)]
        [3, 3, 1]

    Source: Peharz et al., "Random sum-product networks", UAI 2019, for regions; Liu and Van den Broeck, "Tractable
        regularization of probabilistic circuits", NeurIPS 2021, for hidden Chow-Liu trees.
    """
    words = iter(program.tolist())
    found: list[Region] = []
    for outputs in words:
        try:
            first_node, num_terms = next(words), next(words)
            terms = tuple(_term(words) for _ in range(num_terms))
        except (StopIteration, RuntimeError) as error:
            raise ValueError(f"program must be whole, got an end inside region {len(found)}") from error
        below = [r for t in terms for r in _reads(t)]
        if outputs < 1 or not terms or any(not 0 <= r < len(found) for r in below):
            raise ValueError(
                f"program must give region {len(found)} outputs, terms and regions before it, got {outputs} outputs, "
                f"{len(terms)} terms and regions {below}"
            )
        found.append(Region(outputs, first_node, terms))
    return found


def _reads(term: Term) -> list[int]:
    if isinstance(term, Mixture):
        return [term.region]
    return [r for pair in term.regions for r in pair] if isinstance(term, Pairs) else []


def _term(words: Iterator[int]) -> Term:
    kind = next(words)
    if kind == 0:
        pairs = [(next(words), next(words)) for _ in range(next(words))]
        return Leaves(tuple(v for v, _ in pairs), tuple(leaf for _, leaf in pairs))
    if kind == 1:
        return Mixture(next(words), next(words), next(words), next(words))
    if kind == 2:
        num_pairs, first_weight = next(words), next(words)
        return Pairs(first_weight, tuple((next(words), next(words)) for _ in range(num_pairs)))
    raise ValueError(f"program must have terms of kind 0, 1 or 2, got {kind}")
