"""The layer: projections around the one call."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyfast.linear_attention import features
from pyfast.linear_attention._attention import attention

FeatureMap = Literal["elu_plus_one", "relu", "identity"] | Callable[[Tensor], Tensor]
Decay = Literal["head", "token", "vector"]

_FEATURES = {"elu_plus_one": features.elu_plus_one, "relu": features.relu, "identity": features.identity}
_TEMPERATURE = 16  # of gates per token: sigmoid(x) ** (1 / 16), so that a state begins by forgetting slowly
_GATE_RANK = 16


class LinearAttention(nn.Module):
    """Multi-head linear attention, of a sequence to itself or to another: projections around ``attention``.

    Args:
        embed_dim: size of a token, in and out.
        num_heads: number of heads of queries.
        num_kv_heads: number of heads of keys and values, a divisor of ``num_heads``, each of which serves a group of
            heads; ``num_heads`` by default.
        head_dim: size K of a query and a key, and V of a value; ``embed_dim // num_heads`` by default.
        feature_map: what queries and keys, (B, T, H, K), pass through: "elu_plus_one", "relu", "identity", or a
            function or module, which may change K unless decays are vectors.
        causal: whether token t sees only tokens up to t.
        normalize: whether each result is divided by the sum of its weights, which the feature map should make positive;
            by default, unless ``delta``, with which this is not possible.
        decay: by what the state decays before it reads a token: None, not at all; "head", one learned factor per head,
            1 - 2 ** (-5 - h) at the beginning, as in RetNet; "token", a gate per token and head of keys,
            sigmoid(x w + b) ** (1 / 16); "vector", a gate per token, head and dimension of keys with a w of rank 16, as
            in gated linear attention. A causal layer only.
        delta: whether a token corrects what the state holds for its key, by a share sigmoid(x w), in place of adding to
            it, as in DeltaNet; queries and keys then have length 1 after the feature map. A causal layer only.
        bias: whether the projections of queries, keys, values and results have one.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: if a size or an option does not fit.

    Example:
        >>> import pyfast, torch
        >>> layer = pyfast.linear_attention.LinearAttention(64, 4, decay="vector")
        >>> x = torch.randn(2, 100, 64)
        >>> out = layer(x)
        >>> out.shape
        torch.Size([2, 100, 64])
        >>> begin, state = layer(x[:, :99], output_final_state=True)
        >>> end, state = layer(x[:, 99:], initial_state=state, output_final_state=True)  # one more token
        >>> torch.allclose(torch.cat([begin, end], 1), out, atol=1e-5)
        True

    Source: Katharopoulos et al., 2020, https://arxiv.org/abs/2006.16236; "head", Sun et al., 2023,
        https://arxiv.org/abs/2307.08621, equation 8; "vector", Yang et al., 2023, https://arxiv.org/abs/2312.06635,
        section 4; ``delta``, Yang et al., 2024, https://arxiv.org/abs/2406.06484.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        feature_map: FeatureMap = "elu_plus_one",
        causal: bool = True,
        normalize: bool | None = None,
        decay: Decay | None = None,
        delta: bool = False,
        bias: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        groups = num_heads if num_kv_heads is None else num_kv_heads
        for name, n in (("embed_dim", embed_dim), ("num_heads", num_heads), ("head_dim", head_dim)):
            if n is not None and n < 1:
                raise ValueError(f"{name} must be at least 1, got {n}")
        if groups < 1 or num_heads % groups:
            raise ValueError(f"num_kv_heads must divide num_heads, {num_heads}, got {groups}")
        if head_dim is None and embed_dim % num_heads:
            raise ValueError(f"num_heads must divide embed_dim, {embed_dim}, unless head_dim is given, got {num_heads}")
        if feature_map not in _FEATURES if isinstance(feature_map, str) else not callable(feature_map):
            raise ValueError(f"feature_map must be one of {', '.join(_FEATURES)} or a function, got {feature_map!r}")
        if decay not in (None, "head", "token", "vector"):
            raise ValueError(f"decay must be None, 'head', 'token' or 'vector', got {decay!r}")
        for name, given in (("decay", decay), ("delta", delta)):
            if given and not causal:
                raise ValueError(
                    f"{name} must be {None if name == 'decay' else False} if causal is False, got {given!r}"
                )
        if delta and normalize:
            raise ValueError("normalize must be False with delta, got True")
        self.embed_dim, self.num_heads, self.num_kv_heads = embed_dim, num_heads, groups
        self.head_dim = size = embed_dim // num_heads if head_dim is None else head_dim
        self.causal, self.decay, self.delta = causal, decay, delta
        self.normalize = not delta if normalize is None else normalize
        self.feature_map = _FEATURES[feature_map] if isinstance(feature_map, str) else feature_map

        def linear(n: int, m: int, bias: bool) -> nn.Linear:
            return nn.Linear(n, m, bias=bias, device=device, dtype=dtype)

        self.q_proj = linear(embed_dim, num_heads * size, bias)
        self.k_proj = linear(embed_dim, groups * size, bias)
        self.v_proj = linear(embed_dim, groups * size, bias)
        self.out_proj = linear(num_heads * size, embed_dim, bias)
        if decay == "head":
            self.log_rate = nn.Parameter(torch.empty(num_heads, device=device, dtype=dtype))
        elif decay == "token":
            self.decay_proj: nn.Module = linear(embed_dim, groups, True)
        elif decay == "vector":
            self.decay_proj = nn.Sequential(
                linear(embed_dim, _GATE_RANK, False), linear(_GATE_RANK, groups * size, True)
            )
        if delta:
            self.beta_proj = linear(embed_dim, groups, False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all projections anew, as ``torch.nn.Linear`` does, and set decays per head to the first values."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
        if self.decay == "head":
            with torch.no_grad():
                heads = torch.arange(self.num_heads, dtype=torch.float64, device=self.log_rate.device)
                self.log_rate.copy_((-torch.log1p(-(2 ** (-5 - heads)))).log())

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        initial_state: Tensor | None = None,
        output_final_state: bool = False,
        cu_seqlens: Tensor | None = None,
        cu_seqlens_k: Tensor | None = None,
        group: Any = None,
    ) -> Any:
        """Attend.

        Args:
            x: (B, T, embed_dim) tokens.
            context: (B, S, embed_dim) tokens that those of ``x`` look at, if not ``causal``; ``x`` by default.
            initial_state: what the tokens before left, as ``output_final_state`` returned it. A causal layer that is
                fed a sequence piece by piece gives what it would give for the whole.
            output_final_state: whether to return the state after the last token too. It is (B, num_heads, K, V),
                float32 or float64; with normalize V + 1; if not ``causal``, of num_kv_heads.
            cu_seqlens: (N + 1,) int64, where sequences that lie end to end in ``x`` begin and end, see ``attention``.
            cu_seqlens_k: the same for ``context``, where it differs.
            group: a ``torch.distributed`` group whose ranks hold consecutive parts of the tokens, see ``attention``.

        Returns:
            (B, T, embed_dim), and the state if ``output_final_state``.

        Raises:
            ValueError: if a shape does not fit, or there is a context of a causal layer.
            TypeError: if a dtype or device does not fit.
        """
        if x.dim() != 3 or x.shape[2] != self.embed_dim:
            raise ValueError(f"x must have shape (B, T, {self.embed_dim}), got {tuple(x.shape)}")
        if context is not None and self.causal:
            raise ValueError("context must be None unless causal is False, got a tensor")
        if context is not None and (context.dim() != 3 or context.shape[::2] != (x.shape[0], self.embed_dim)):
            raise ValueError(
                f"context must have shape ({x.shape[0]}, S, {self.embed_dim}) to match x, got {tuple(context.shape)}"
            )
        source = x if context is None else context
        q = self.feature_map(self.q_proj(x).unflatten(-1, (self.num_heads, -1)))
        k = self.feature_map(self.k_proj(source).unflatten(-1, (self.num_kv_heads, -1)))
        v = self.v_proj(source).unflatten(-1, (self.num_kv_heads, -1))
        if self.delta:
            q, k = _unit(q), _unit(k)
        found = attention(
            q,
            k,
            v,
            causal=self.causal,
            decay=self._decays(x),
            beta=self.beta_proj(x).sigmoid() if self.delta else None,
            normalize=self.normalize,
            initial_state=initial_state,
            output_final_state=output_final_state,
            cu_seqlens=cu_seqlens,
            cu_seqlens_k=cu_seqlens_k,
            group=group,
        )
        out, last = found if output_final_state else (found, None)
        out = self.out_proj(out.flatten(2))
        return (out, last) if output_final_state else out

    def _decays(self, x: Tensor) -> Tensor | None:
        """Logarithms, which 16 bits would be too few for."""
        if self.decay is None:
            return None
        if self.decay == "head":
            return -self.log_rate.to(torch.promote_types(self.log_rate.dtype, torch.float32)).exp()
        gate = self.decay_proj(x)
        gate = functional.logsigmoid(gate.to(torch.promote_types(gate.dtype, torch.float32))) / _TEMPERATURE
        return gate.unflatten(-1, (self.num_kv_heads, -1)) if self.decay == "vector" else gate

    def extra_repr(self) -> str:
        """What the parameters do not show."""
        return (
            f"{self.embed_dim}, {self.num_heads}, num_kv_heads={self.num_kv_heads}, head_dim={self.head_dim}, "
            f"causal={self.causal}, normalize={self.normalize}, decay={self.decay!r}, delta={self.delta}"
        )


def _unit(x: Tensor) -> Tensor:
    """Of length 1; the length of 16-bit numbers may not be one."""
    return functional.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1).to(x.dtype)
