"""Densities that users write in Python, compiled by numba and called by the kernels."""

import importlib
import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MOST_STATISTICS, _MOST_CANDIDATES = 8, 4096
_REACH = 2.0**28  # |statistic * quantum| of the data fitted: two bits less than leaves can count


class Density:
    """A column's own density: each component follows one of several candidates, which one is learned.

    The density must be of the exponential family, so that a few sums say all about many values. Candidates make the
    posterior of a leaf finite: it is sampled, and summed out, exactly. Functions are compiled by numba, without Python
    in the loop; they may use ``math`` and what else numba knows.

    Args:
        statistics: of a float: a number or a tuple of at most 8; of several values they are added up.
        log_density: of ``(n, t, theta)``: the log density of n values whose statistics add up to the array t, under the
            array theta. It must be finite, and add up over values as they do.
        parameters: (M,) or (M, p): theta of each candidate.
        prior: (M,), positive: odds of the candidates before data; by default even.
        quantile: of ``(u, theta)``: the value below which the density has the share u, for sampling; optional.

    Raises:
        ImportError: without numba.
        TypeError: if a function is none, or numba cannot compile it.
        ValueError: if the arrays' shapes or values are no candidates and odds.

    Source: candidates as in Ritter and Tanner, "The griddy Gibbs sampler", JASA 1992, here as the prior itself.

    Example:
        >>> import math, numpy as np, pyfast
        >>> def statistics(x):
        ...     return math.log(x), x * x
        >>> def log_density(n, t, scale):
        ...     return t[0] - 2 * n * math.log(scale[0]) - t[1] / (2 * scale[0] ** 2)
        >>> def quantile(u, scale):
        ...     return scale[0] * math.sqrt(-2 * math.log1p(-u))
        >>> rayleigh = pyfast.spn.Density(statistics, log_density, np.geomspace(0.1, 10, 32), quantile=quantile)
        >>> X = np.random.default_rng(0).rayleigh([1.0, 3.0], (200, 2))
        >>> model = pyfast.spn.BayesSPN(columns=rayleigh, hidden=2, sweeps=20).fit(X)
        >>> model.sample(3, seed=1).shape
        (3, 2)
    """

    def __init__(
        self,
        statistics: Callable[..., Any],
        log_density: Callable[..., float],
        parameters: ArrayLike,
        prior: ArrayLike | None = None,
        quantile: Callable[..., float] | None = None,
    ) -> None:
        theta = np.array(parameters, dtype=np.float64)
        theta = theta[:, None] if theta.ndim == 1 else theta
        if theta.ndim != 2 or not 1 <= len(theta) <= _MOST_CANDIDATES or theta.shape[1] == 0:
            raise ValueError(f"parameters must have shape (M,) or (M, p), M up to 4096, got {np.shape(parameters)}")
        if not np.isfinite(theta).all():
            raise ValueError(f"parameters must be finite, got {theta[~np.isfinite(theta)][0]}")
        odds = np.ones(len(theta)) if prior is None else np.array(prior, dtype=np.float64)
        if odds.shape != (len(theta),):
            raise ValueError(f"prior must have shape ({len(theta)},), got {odds.shape}")
        if not ((odds > 0) & (odds < math.inf)).all():
            raise ValueError(f"prior must be positive and finite, got {odds[~((odds > 0) & (odds < math.inf))][0]}")
        for name, function in (("statistics", statistics), ("log_density", log_density), ("quantile", quantile)):
            if not callable(function) and (function is not None or name != "quantile"):
                raise TypeError(f"{name} must be a function, got {type(function).__name__}")
        self._made_of = statistics, log_density, theta, odds, quantile
        self.parameters, self.log_prior = theta, np.log(odds / odds.sum())
        self._compile(statistics, log_density, quantile)

    def _compile(self, statistics: Any, log_density: Any, quantile: Any) -> None:
        try:
            numba: Any = importlib.import_module("numba")
        except ImportError as error:
            raise ImportError("Density needs numba: pip install 'pyfast-kernels[numba]'") from error
        each = self.parameters.shape[1]
        compiled = numba.njit(error_model="numpy", nogil=True)
        say, log = compiled(_plain(statistics)), compiled(_plain(log_density))
        unrolled = numba.literal_unroll
        array, number = numba.types.CPointer(numba.types.float64), numba.types.float64
        try:
            first = say(1.0)
            size = len(first) if isinstance(first, tuple) else 1
            if not 1 <= size <= _MOST_STATISTICS:
                raise ValueError(f"statistics must return between 1 and {_MOST_STATISTICS} numbers, got {size}")
            one = not isinstance(first, tuple)

            @compiled
            def into(x: Any, out: Any) -> None:
                if one:
                    out[0] = say(x)
                else:
                    i = 0
                    found = say(x)
                    for value in unrolled(found):  # of several types; numba cannot enumerate these
                        out[i] = value
                        i += 1  # noqa: SIM113

            @compiled
            def table(x: Any) -> Any:
                out = np.empty((len(x), size))
                for i in range(len(x)):
                    into(x[i], out[i])
                return out

            @compiled
            def logs(n: Any, t: Any, theta: Any) -> Any:
                out = np.empty((len(t), len(theta)))
                for i in range(len(t)):
                    for m in range(len(theta)):
                        out[i, m] = log(n, t[i], theta[m])
                return out

            @numba.cfunc(numba.types.void(number, array), error_model="numpy")
            def call_statistics(x: Any, out: Any) -> None:
                into(x, numba.carray(out, size))

            @numba.cfunc(number(number, array, array), error_model="numpy")
            def call_log_density(n: Any, t: Any, theta: Any) -> Any:
                return log(n, numba.carray(t, size), numba.carray(theta, each))

            addresses = [call_statistics.address, call_log_density.address, 0]
            self._alive = [call_statistics, call_log_density]
            if quantile is not None:
                draw = compiled(_plain(quantile))

                @numba.cfunc(number(number, array), error_model="numpy")
                def call_quantile(u: Any, theta: Any) -> Any:
                    return draw(u, numba.carray(theta, each))

                addresses[2] = call_quantile.address
                self._alive.append(call_quantile)
            self._table, self._logs = table, logs
            self._logs(1.0, self._table(np.ones(1)), self.parameters)
        except numba.core.errors.NumbaError as error:
            said = next((x for x in str(error).splitlines() if x and not x.startswith("Failed")), "an error")
            raise TypeError(f"statistics, log_density and quantile must compile, got: {said}") from error
        self.size, self.addresses = size, addresses

    @property
    def width(self) -> int:
        """Numbers of a leaf: one for each candidate, and room for its statistics."""
        return max(len(self.parameters), self.size + 1)

    def statistics(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """(N, size): of N values, which are not missing."""
        found = self._table(np.ascontiguousarray(x, np.float64))
        return np.asarray(found, np.float64)

    def log_density(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """(N, M): of N values under every candidate."""
        return np.asarray(self._logs(1.0, self.statistics(x), self.parameters), np.float64)

    def fit(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """(size,), powers of two: the quanta in which leaves count statistics of these values.

        Raises:
            ValueError: if ``log_density`` does not add up.
        """
        some = x[:: max(1, len(x) // 64)]
        t = self.statistics(some)
        apart = self.log_density(some)
        apart, others = apart, apart[::-1]
        both = self._logs(2.0, t + t[::-1], self.parameters)
        wrong = ~(np.abs(both - apart - others) <= 1e-6 * (1 + np.abs(apart) + np.abs(others)))
        if wrong.any():
            i, m = np.argwhere(wrong)[0]
            raise ValueError(
                f"log_density must add up over values as statistics do, got {both[i, m]} of two values that have "
                f"{apart[i, m]} and {others[i, m]} under candidate {m}"
            )
        reach = np.abs(self.statistics(x)).max(0, initial=0.0)
        reach = np.where(reach > 0, reach, 1.0)
        return np.asarray(2.0 ** np.floor(np.log2(_REACH / reach)))

    def __deepcopy__(self, memo: Any) -> "Density":
        return self

    def __reduce__(self) -> Any:
        return Density, self._made_of

    def __repr__(self) -> str:
        return f"Density({len(self.parameters)} candidates of {getattr(self._made_of[1], '__name__', 'a density')})"


def _plain(function: Any) -> Any:
    """What numba compiles: of a function that it compiled already, the Python."""
    return getattr(function, "py_func", inspect.unwrap(function))
