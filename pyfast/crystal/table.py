"""Radial networks as tables: everything that depends on a distance alone is computed once per knot, not per edge."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyfast.crystal import _operators as ops
from pyfast.crystal._arguments import check_tensor


class RadialTable(torch.nn.Module):
    """A function of distance (M,) -> (M, F), such as a filter network on an expanded distance, read from a table.

    The table holds values and slopes at uniform knots and interpolates by cubic Hermite pieces, so that it has a
    continuous derivative, and an error that falls with the fourth power of the spacing. When it is made, and whenever
    ``refresh`` is called, it is compared with the network between its knots; knots are doubled until the error is
    within the tolerance. Where even ``most`` knots do not do, ``exact`` becomes True, with a warning, and the network
    itself is used, edge by edge.

    It is a Module that registers its network: parameters and buffers of the network are the table's, ``to`` moves
    both, and a state dictionary has them under ``network.``.

    Training goes through it: gradients of the table are summed per knot, in a fixed order, and go on through the
    network at the knots. Parameters that change are seen at once, as the table is computed anew for them; that it is
    still fine enough is known after ``refresh``, which a training loop may call now and then.

    Attributes:
        exact: whether the network is called for every edge.
        num_knots: knots of the table.
        error: largest error found between the knots, as a share of the largest value.

    Source: Hermite interpolation is textbook; radial filters are those of Schütt et al., 2017,
    https://arxiv.org/abs/1706.08566.

    Example:
        >>> import torch
        >>> from pyfast import crystal
        >>> table = crystal.RadialTable(lambda r: torch.stack([r.sin(), r.cos()], 1), 5.0)
        >>> r = torch.tensor([1.0, 2.5])
        >>> bool((table(r) - torch.stack([r.sin(), r.cos()], 1)).abs().max() < 1e-5)
        True
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        cutoff: float,
        *,
        minimum: float = 0.0,
        tolerance: float = 1e-5,
        knots: int = 256,
        most: int = 16384,
    ) -> None:
        """Tabulate ``network``, whose rows must not depend on each other.

        Args:
            network: a module or function from distances (M,) to (M, F); its parameters become the table's.
            cutoff: largest distance, Å.
            minimum: smallest distance, Å; above 0 where the network is singular there.
            tolerance: largest error, as a share of the network's largest value.
            knots: how many to begin with.
            most: how many at most.

        Raises:
            ValueError: if a number is out of its range, or the network's answer has another shape.
            TypeError: if the network is not callable, or its answer is not float32 or float64.
        """
        super().__init__()
        if not callable(network):
            raise TypeError(f"network must be callable, got {type(network).__name__}")
        for name, value, lowest in (
            ("cutoff", cutoff, minimum),
            ("minimum", minimum, -1.0),
            ("tolerance", tolerance, 0.0),
        ):
            if not (math.isfinite(value) and value > lowest) or (name == "minimum" and value < 0):
                rule = "be finite and at least 0" if name == "minimum" else f"be finite and above {lowest}"
                raise ValueError(f"{name} must {rule}, got {value}")
        for name, count in (("knots", knots), ("most", most)):
            if not isinstance(count, int) or count < 2:
                raise ValueError(f"{name} must be an integer of at least 2, got {count}")
        if most < knots:
            raise ValueError(f"most must be at least knots, {knots}, got {most}")
        self.network = network
        self.cutoff, self.minimum, self.tolerance, self.most = float(cutoff), float(minimum), float(tolerance), most
        self.num_knots, self.exact, self.error = knots, False, math.inf
        self._cache: tuple[Any, Tensor] | None = None
        self._refine()

    @property
    def spacing(self) -> float:
        """Å between knots."""
        return (self.cutoff - self.minimum) / (self.num_knots - 1)

    def refresh(self) -> float:
        """Compare with the network between the knots, and double the knots until they do.

        Returns:
            The error, as a share of the network's largest value; NaN where the network is not finite.
        """
        return self._refine()

    @torch.no_grad()
    def _refine(self) -> float:
        was_exact = self.exact
        while True:
            table = self._tabulate()
            middle = self._places(0.5)
            truth = self._call(middle)
            error = (_read(table, middle, self.minimum, self.spacing) - truth).abs().max()
            self.error = float(error / truth.abs().max().clamp_min(torch.finfo(truth.dtype).tiny))
            self.exact = not self.error <= self.tolerance
            if not self.exact or 2 * self.num_knots > self.most:
                break
            self.num_knots *= 2
        if self.exact and not was_exact:
            why = f"{self.num_knots} knots err by {self.error:.1e} of its largest value, tolerance {self.tolerance:g}"
            if not math.isfinite(self.error):
                why = f"it is not finite everywhere in [{self.minimum:g}, {self.cutoff:g}]"
            warnings.warn(f"the network of a RadialTable is called for every edge, slowly: {why}", stacklevel=4)
        return self.error

    def values(self) -> Tensor:
        """The table (knots, 2, F): values, and slopes times the spacing; differentiable in the network's parameters.

        Without gradients it is computed once for as long as the parameters do not change.
        """
        state = [*self.parameters(), *self.buffers()] if isinstance(self.network, torch.nn.Module) else None
        if (
            state is None
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or any(x.is_inference() for x in state)
        ):
            return self._tabulate()
        key = self.num_knots, [(x.data_ptr(), x._version, x.dtype) for x in state]
        if self._cache is None or self._cache[0] != key:
            self._cache = key, self._tabulate()
        return self._cache[1]

    def forward(self, distance: Tensor) -> Tensor:
        """The network's values, from the table.

        Args:
            distance: (E,) Å, in [minimum, cutoff], of the network's dtype.

        Returns:
            (E, F), differentiable in ``distance`` and in the network's parameters, to any order; the third derivative
            along ``distance`` is that of the pieces, and those above are 0.

        Raises:
            ValueError: if a distance is out of range or NaN (on the CPU; on CUDA the nearest piece goes on), or its
                shape is another.
            TypeError: if its dtype or device is not the network's.
        """
        if self.exact:
            self._check_range(distance)
            return self._call(distance)
        table = self.values()
        check_tensor("distance", distance, ("E",), table, "the network")
        return _read(table, distance, self.minimum, self.spacing)

    def _check_range(self, r: Tensor) -> None:
        """As the kernels that read a table do, on the CPU; not where values are not to be had."""
        if r.device.type != "cpu" or torch.compiler.is_compiling() or torch._C._functorch.is_batchedtensor(r):
            return
        outside = ~((r >= self.minimum) & (r <= self.cutoff))
        if outside.any():
            e = int(outside.to(torch.uint8).argmax())
            raise ValueError(
                f"distance[{e}] must be in [{self.minimum:g}, {self.cutoff:g}], the range of the table, got {r[e]:g}"
            )

    def _places(self, shift: float) -> Tensor:
        """Knots, or what lies so much of a spacing beyond each but the last."""
        like = next((x for x in [*self.parameters(), *self.buffers()] if x.is_floating_point()), None)
        dtype = torch.get_default_dtype() if like is None else like.dtype
        device = None if like is None else like.device
        count = self.num_knots - (shift > 0)
        places = torch.arange(count, dtype=torch.float64, device=device) + shift
        return (self.minimum + places * self.spacing).to(dtype)

    def _call(self, r: Tensor) -> Tensor:
        try:
            out = self.network(r)
        except Exception as error:
            given = f"here ({r.shape[0]},), {r.dtype}, on {r.device}"
            error.add_note(f"RadialTable: network is called with distances of shape (M,), {given}; it returns (M, F)")
            raise
        if not isinstance(out, Tensor) or out.dim() != 2 or out.shape[0] != r.shape[0] or not out.shape[1]:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"network must return ({r.shape[0]}, F) for ({r.shape[0]},) distances, got {got}")
        if out.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"network must return float32 or float64, got {out.dtype}")
        return out

    def _tabulate(self) -> Tensor:
        # The slope of every channel in two passes backwards: v . slope is linear in v. (Forward mode would be one pass,
        # for those networks alone whose every operator knows it.)
        vjp: Any = torch.func.vjp
        values, pull = vjp(self._call, self._places(0.0))
        slopes = torch.func.grad(lambda v: pull(v)[0].sum())(torch.zeros_like(values))
        return torch.stack([values, slopes * self.spacing], 1)

    def extra_repr(self) -> str:
        """What print() says of it."""
        return f"cutoff={self.cutoff}, knots={self.num_knots}, error={self.error:.1e}, exact={self.exact}"


def _read(table: Tensor, r: Tensor, start: float, spacing: float) -> Tensor:
    """(E, F): every edge a row that hears one source, whose features are 1."""
    count, columns = r.shape[0], table.shape[2]
    zeros, each = r.new_zeros(count, dtype=torch.int64), torch.arange(count + 1, device=r.device)
    none = zeros[:0]
    views = (zeros, none, each, each[:-1].contiguous(), none, each[:: max(count, 1)][:2].contiguous())
    one = table.new_ones(1, columns)
    return ops.table_conv(one, torch.ones_like(r), r.contiguous(), table.contiguous(), *views, start, spacing, 0)
