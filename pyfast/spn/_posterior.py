"""What the kept states of chains say, with weights and leaves integrated out."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pyfast.spn._chain import State
from pyfast.spn._hyper import Hyper, uniforms
from pyfast.spn._network import PARAMETERS, SAMPLE_STATE, Counts, Law, Network, Parameters, purpose


class Posterior:
    """Answers about encoded rows, averaged over states."""

    def __init__(self, network: Network, hyper: Hyper, states: Sequence[State], seed: int) -> None:
        self._network, self._hyper, self._states, self._seed = network, hyper, states, seed

    def given(self, state: State) -> tuple[Counts, Law]:
        """The statistics of a state, and what its parameters were drawn from before them."""
        law = self._network.law(state.mass, self._hyper.prior(state.kappa))
        return Counts(state.weight_counts.long(), state.leaf_counts), law

    def predictive(self, state: State) -> Parameters:
        """The network whose likelihood is the posterior mean, given one state."""
        return self._network.predict(*self.given(state))

    def _predictives(self) -> Iterator[Parameters]:
        return map(self.predictive, self._states)

    def log_prob(self, rows: Tensor) -> Tensor:
        """(N,), without what the leaves of a column share."""
        total: Tensor | None = None
        for parameters in self._predictives():
            now = self._network.log_prob(rows, parameters)
            total = now if total is None else torch.logaddexp(total, now)
        assert total is not None
        return total - math.log(len(self._states))

    def credible_interval(self, rows: Tensor, level: float) -> Tensor:
        """(N, 2): quantiles over four draws of the parameters from each state."""
        found = [
            self._network.log_prob(
                rows, self._network.draw(*self.given(state), self._seed, purpose(PARAMETERS, 0xFFFF, 4 * i + j))
            )
            for i, state in enumerate(self._states)
            for j in range(4)
        ]
        edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
        return torch.stack(found).quantile(edges, 0).T

    def sample(self, rows: Tensor, seed: int) -> Tensor:
        """What is missing is drawn, from a state that is drawn in proportion to what it says of the rest of the row."""
        known = torch.stack([self._network.log_prob(rows, p) for p in self._predictives()], 1)
        _check_possible(known)
        gumbel = -(-uniforms(seed, purpose(SAMPLE_STATE), known.numel(), 1).view(known.shape).log()).log()
        state = (known + gumbel).argmax(1)
        return self._complete(rows, state, list(self._predictives()), seed, best=False)

    def mpe(self, rows: Tensor) -> Tensor:
        """What is missing is the most probable, in the state that says most of the rest of the row."""
        predictives = list(self._predictives())
        known = torch.stack([self._network.log_prob(rows, p) for p in predictives], 1)
        _check_possible(known)
        return self._complete(rows, known.argmax(1), predictives, 0, best=True)

    def _complete(self, rows: Tensor, state: Tensor, predictives: list[Parameters], seed: int, best: bool) -> Tensor:
        out = rows.clone()
        for i, parameters in enumerate(predictives):
            here = torch.nonzero(state == i).flatten()
            if len(here):
                done = self._network.complete(rows[here], parameters, seed, 0 if best else i, 0, best)
                out[here] = done.float()
        return out


def _check_possible(known: Tensor) -> None:
    """(N, states) log probabilities of rows."""
    never = torch.nonzero((known == -math.inf).all(1)).flatten()
    if len(never):
        raise ValueError(f"X must have rows of a probability above 0, got 0 in row {int(never[0])}")
