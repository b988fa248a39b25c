"""The one call, and the step of it that decodes a token."""

import math
from typing import Any

import torch
from torch import Tensor

from pyfast.linear_attention import _operators as ops
from pyfast.linear_attention import _sums
from pyfast.linear_attention._shapes import exact, heads, spread, weigh, wide

_NAMES = "q", "k", "v", "decay", "beta", "initial_state", "cu_seqlens", "cu_seqlens_k"
_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    causal: bool = True,
    reverse: bool = False,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
    normalize: bool = False,
    eps: float = 1e-6,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    group: Any = None,
    out: Tensor | None = None,
) -> Any:
    """Linear attention, exact, in time and memory linear in the number of tokens.

    A state S of (K, V) numbers per head reads the tokens one after the other::

        S_t = exp(decay_t) S_{t-1} + k_t v_t'            out_t = scale S_t' q_t

    with the delta rule (``beta``) in place of the sum::

        S_t = A_t + beta_t k_t (v_t - A_t' k_t)'         A_t = exp(decay_t) S_{t-1}

    and without causality all tokens read the last state. Chunks of some tens of tokens are summed in float32 or better,
    and those sums in float64 on the CPU, so the error does not grow with the sequence. Differentiable to any order, in
    reverse and forward mode, in q, k, v, decay, beta and initial_state; under ``torch.compile``, ``torch.export`` and
    ``torch.func``. A NaN in one token reaches the tokens that may see it and no others.

    Args:
        q: (B, T, H, K) queries, float32, float64, bfloat16 or float16, with any strides.
        k: (B, T, H, K) keys, of the dtype of ``q``; under ``torch.autocast`` different dtypes are cast to its own.
        v: (B, T, H, V) values, of the dtype of ``q``. Of q, k and v, and of ``decay`` and ``beta``, each may have fewer
            heads than another, a divisor of them, as grouped-query attention has: each of these serves a group of
            consecutive heads.
        scale: multiplies the result; ``K ** -0.5`` by default.
        causal: whether token t sees only tokens up to t. If not, keys and values may be of another sequence, of another
            length, and there is no decay and no delta rule.
        reverse: whether time runs from the last token to the first: token t sees tokens from t on.
        decay: logarithms of the factors by which the state decays before a token is added, so at most 0, or the state
            grows until it overflows; -inf forgets: (H,) one per head, as in RetNet; (B, T, H) one per token, as in
            Mamba-2; or (B, T, H, K) one per token and key dimension, as in gated linear attention. Of these only H may
            be a divisor. Computed with in float64 if it and the tokens are float64, or else in float32.
        beta: (B, T, H) how much of a token is written, for the delta rule.
        normalize: whether each result is divided by ``scale q_t'(sum of keys) + eps``, as after feature maps; not with
            ``beta``.
        eps: added to that divisor.
        initial_state: (N, H, K, V) the state before the first token, float32 or float64; N is the number of sequences,
            H the largest number of heads, if not ``causal`` of k and v.
            With ``normalize`` (N, H, K, V + 1), where the last column is the sum of keys.
        output_final_state: whether to return the state after the last token too, in the dtype of ``initial_state``, or
            else in float32 (float64 with float64 tokens).
        cu_seqlens: (N + 1,) int64: sequences of different lengths, laid end to end with B = 1, begin and end at these
            tokens; empty ones are allowed.
        cu_seqlens_k: the same for k and v, if ``causal`` is false and it differs; ``cu_seqlens`` by default.
        group: a ``torch.distributed`` process group whose ranks hold consecutive parts of the tokens, of any lengths,
            in the order of the ranks, with the same options and ``initial_state``. The result is this rank's part of
            the attention over all tokens, and the final state that after all. One exchange of states among the ranks;
            gradients are those of the sum of the ranks' losses, of which each rank finds its share: for what the ranks
            have in common, as ``initial_state``, their sum is the whole. All ranks have to run the backward pass.
            ``torch.compile`` splits the graph at the exchange. Not with ``cu_seqlens``.
        out: where to write the result, of its shape and dtype, with any strides; without gradients.

    Returns:
        (B, T, H, V) in the dtype of ``q``, H the largest number of heads; and (N, H, K, V), or (N, H, K, V + 1) with
        ``normalize``, if ``output_final_state``.

    Raises:
        ValueError: if a shape does not fit, an option excludes another, or ``cu_seqlens`` does not rise from 0 to T (on
            the CPU; elsewhere the result is then undefined).
        TypeError: if a dtype or device does not fit.

    Example:
        >>> import pyfast, torch
        >>> q, k, v = torch.ones(1, 3, 1, 2), torch.ones(1, 3, 1, 2), torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
        >>> pyfast.linear_attention.attention(q, k, v, scale=0.5).flatten()  # running sums
        tensor([1., 3., 6.])
        >>> pyfast.linear_attention.attention(q, k, v, normalize=True, eps=0.0).flatten()  # running means
        tensor([1.0000, 1.5000, 2.0000])

    Source: Katharopoulos et al., 2020, https://arxiv.org/abs/2006.16236, equations 16 to 20; decays, Yang et al., 2023,
        https://arxiv.org/abs/2312.06635; delta rule, Yang et al., 2024, https://arxiv.org/abs/2412.06464.
    """
    usual = causal and not (reverse or normalize or output_final_state) and (scale is None or type(scale) is float)
    if usual and decay is beta is initial_state is cu_seqlens is cu_seqlens_k is group is out is None and eps == 1e-6:
        plain = ops.attend_plain(q, k, v, scale)
        if plain is not None:
            return plain
    q, k, v = _autocast(q, k, v)
    try:
        scale = _check(
            q, k, v, scale, causal, reverse, decay, beta, normalize, eps, initial_state, cu_seqlens, cu_seqlens_k
        )
        if not isinstance(output_final_state, bool):
            raise TypeError(f"output_final_state must be a bool, got {output_final_state!r}")
        if out is not None:
            _check_out(out, q, k, v, (q, k, v, decay, beta, initial_state, cu_seqlens, cu_seqlens_k))
    except (TypeError, ValueError):
        if group is not None:
            from pyfast.linear_attention import _parallel

            _parallel.refuse(group)
        raise
    if decay is not None:
        decay = decay if decay.dtype == torch.float64 == q.dtype else decay.to(wide(q))
        decay = decay.expand(*k.shape[:2], -1) if decay.dim() == 1 else decay
    keep = output_final_state and group is None
    ones = normalize and not causal
    kind = q.dtype
    if ones or (beta is not None and q.device.type == "cpu"):  # differences and quotients of sums
        q, k, v = (x.to(wide(q)) for x in (q, k, v))
    values = ops.with_ones(v) if ones else v
    weighed = None
    if beta is not None:  # S_t = A_t + k_t (beta_t v_t - A_t' beta_t k_t)': of 16 bits, the keys stay what they are
        weighed = weigh(k, beta.to(wide(k)))
        values = weigh(v.to(exact(v)), beta.to(exact(v)))
    state = initial_state
    if group is not None:
        from pyfast.linear_attention import _parallel

        sums = ops.with_ones(v) if normalize else v
        write, erase = (k, None) if weighed is None else (weighed, k)
        state, total = _parallel.states(
            q, write, sums, decay, erase, initial_state, cu_seqlens, normalize, causal, reverse, group
        )
    into = out is not None and causal and not ones and q.dtype == kind
    if not causal:
        ends = cu_seqlens if cu_seqlens_k is None else cu_seqlens_k
        try:
            last = _sums.collect(k, values, state, ends) if group is None else total
        except ValueError as error:  # the operator knows but one sequence
            if cu_seqlens_k is None:
                raise
            raise ValueError(str(error).replace("cu_seqlens", "cu_seqlens_k", 1)) from None
        result = _sums.read(q, last, cu_seqlens, scale)
    elif normalize and not ones:
        args = q, k, v, decay, state, cu_seqlens, scale, eps, keep, reverse
        if into:
            result, (last, _) = out, ops.attend_normalized_into(*args, out)
        else:
            result, last, _ = ops.attend_normalized(*args)
    else:
        if weighed is not None:
            values = spread(values, heads(q, k, v))  # each head of q has a state, so its own solution
            values, _ = ops.solve(weighed.to(k.dtype), k, values, decay, state, cu_seqlens, False, reverse, False)
        flags = scale, 1.0, keep, reverse, False, False, False
        if into:
            result, last = out, ops.attend_into(q, k, values, decay, state, cu_seqlens, *flags, out)
        else:
            result, last = ops.attend(q, k, values, decay, state, cu_seqlens, *flags)
    if ones:
        result = result[..., :-1] / (result[..., -1:] + eps)
    result = result if result.dtype == kind else result.to(kind)
    if group is not None:
        last = total.to(wide(q) if initial_state is None else initial_state.dtype)
    if out is not None and not into:
        result = out.copy_(result)
    return (result, last) if output_final_state else result


def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor | None = None,
    *,
    scale: float | None = None,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
    normalize: bool = False,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """One token of ``attention`` for every sequence of a batch, as decoding needs it.

    Args:
        q: (B, H, K) queries, as for ``attention``, without the dimension of time.
        k: (B, H, K) keys.
        v: (B, H, V) values.
        state: (B, H, K, V) from the step before, or ``attention``'s final state; (B, H, K, V + 1) with ``normalize``;
            None at the beginning. float64 carries more digits through a long sequence than float32.
        scale: multiplies the result; ``K ** -0.5`` by default.
        decay: (H,), (B, H) or (B, H, K) logarithms.
        beta: (B, H) for the delta rule.
        normalize: whether to divide by the sum of keys, as in ``attention``.
        eps: added to that divisor.

    Returns:
        (B, H, V) and the state after the token, new memory in the dtype of ``state``, float32 (float64 with float64
        tokens) at the beginning.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if a dtype or device does not fit.

    Example:
        >>> import pyfast, torch
        >>> q = k = v = torch.ones(1, 1, 2)
        >>> out, state = pyfast.linear_attention.step(q, k, v)
        >>> out, state = pyfast.linear_attention.step(q, k, v, state, decay=torch.tensor([0.5]).log())
        >>> state  # 0.5 * 1 + 1
        tensor([[[[1.5000, 1.5000],
                  [1.5000, 1.5000]]]])

    Source: the recurrence of ``attention``, Katharopoulos et al., 2020, https://arxiv.org/abs/2006.16236, equation 18.
    """
    usual = type(normalize) is bool and (scale is None or type(scale) is float) and type(eps) is float
    if usual and 0 <= eps < math.inf:
        plain = ops.step_plain(q, k, v, state, decay, beta, scale, normalize, eps)
        if plain is not None:
            return plain
    for name, x in (("q", q), ("k", k), ("v", v), ("decay", decay), ("beta", beta), ("state", state)):
        if not isinstance(x, Tensor) and (x is not None or name in "qkv"):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 3:
            raise ValueError(f"{name} must have shape (B, H, {'V' if name == 'v' else 'K'}), got {tuple(x.shape)}")
    b, _, size = q.shape
    for name, x in (("k", k), ("v", v)):
        if x.shape[0] != b or (name == "k" and x.shape[2] != size):
            shape = f"({b}, H, {'V' if name == 'v' else size})"
            raise ValueError(f"{name} must have shape {shape} to match q {tuple(q.shape)}, got {tuple(x.shape)}")
    if beta is not None and (beta.dim() != 2 or beta.shape[0] != b):
        raise ValueError(f"beta must have shape ({b}, H), got {tuple(beta.shape)}")
    given = () if decay is None else tuple(decay.shape)
    if decay is not None and len(given) != 1 and (len(given) < 2 or given[0] != b or given[2:] not in ((), (size,))):
        raise ValueError(f"decay must have shape (H,), ({b}, H) or ({b}, H, {size}), got {given}")
    try:
        out, last = attention(
            q.unsqueeze(1),
            k.unsqueeze(1),
            v.unsqueeze(1),
            scale=scale,
            decay=decay if decay is None or decay.dim() == 1 else decay.unsqueeze(1),
            beta=None if beta is None else beta.unsqueeze(1),
            normalize=normalize,
            eps=eps,
            initial_state=state,
            output_final_state=True,
        )
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("initial_state", "state")) from None
    return out.squeeze(1), last


def _autocast(q: Any, k: Any, v: Any) -> tuple[Any, Any, Any]:
    """Tokens that one dtype must be found for, in that of autocast, as of torch's own attention."""
    tensors = [x for x in (q, k, v) if isinstance(x, Tensor)]
    if len({x.dtype for x in tensors}) < 2 or not torch.is_autocast_enabled(tensors[0].device.type):
        return q, k, v
    to = torch.get_autocast_dtype(tensors[0].device.type)
    narrow = {torch.float32, torch.bfloat16, torch.float16}
    return tuple(x.to(to) if isinstance(x, Tensor) and x.dtype in narrow else x for x in (q, k, v))  # type: ignore[return-value]


def _check_out(out: Tensor, q: Tensor, k: Tensor, v: Tensor, inputs: tuple[Tensor | None, ...]) -> None:
    """Raise unless the result can be written there."""
    if not isinstance(out, Tensor):
        raise TypeError(f"out must be a torch.Tensor, got {type(out).__name__}")
    shape = (*q.shape[:2], max(q.shape[2], k.shape[2], v.shape[2]), v.shape[3]) if q.dim() == 4 == v.dim() else ()
    if tuple(out.shape) != shape:
        raise ValueError(f"out must have shape {shape}, got {tuple(out.shape)}")
    if out.dtype != q.dtype or out.device != q.device:
        raise TypeError(f"out must be {q.dtype} on {q.device} as q, got {out.dtype} on {out.device}")
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (out, *inputs)):
        raise ValueError("out must be None where a gradient is wanted, got a tensor; use torch.no_grad()")
    reach = 0
    for step, n in sorted((step, n) for step, n in zip(out.stride(), out.shape, strict=True) if n > 1 and out.numel()):
        if step <= reach:
            raise ValueError(f"out must have a place of its own for every number, got strides {out.stride()}")
        reach += step * (n - 1)
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return
    if out.is_neg():
        raise ValueError("out must not be a negative view, got one")
    storage = out.untyped_storage()._cdata
    if out.numel() and any(x is not None and x.numel() and x.untyped_storage()._cdata == storage for x in inputs):
        raise ValueError("out must not share memory with an input, got one that does")


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None,
    causal: bool,
    reverse: bool,
    decay: Tensor | None,
    beta: Tensor | None,
    normalize: bool,
    eps: float,
    state: Tensor | None,
    ends: Tensor | None,
    ends_k: Tensor | None,
) -> float:
    """Raise unless all fits; returns the scale."""
    tensors = q, k, v, decay, beta, state, ends, ends_k
    if not all(x is None or isinstance(x, Tensor) for x in tensors) or q is None or k is None or v is None:
        name, given = next(
            (name, x)
            for name, x in zip(_NAMES, tensors, strict=True)
            if not isinstance(x, Tensor) and (x is not None or name in ("q", "k", "v"))
        )
        raise TypeError(f"{name} must be a torch.Tensor, got {type(given).__name__}")
    for name, number in (("scale", scale), ("eps", eps)):
        if not isinstance(number, (float, int, torch.SymFloat)) and (number is not None or name == "eps"):
            raise TypeError(f"{name} must be a number, got {type(number).__name__}")
    for name, flag in (("causal", causal), ("reverse", reverse), ("normalize", normalize)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name} must be a bool, got {flag!r}")
    for name, y in zip(_NAMES, tensors, strict=True):
        if y is not None and (y.layout is not torch.strided or y.is_nested):
            raise TypeError(f"{name} must be a dense tensor, got {'a nested one' if y.is_nested else y.layout}")
    dtype, device = q.dtype, q.device
    if dtype not in _FLOATS:
        raise TypeError(f"q must be float16, bfloat16, float32 or float64, got {dtype}")
    if not q.dim() == k.dim() == v.dim() == 4:
        name, x = next((name, x) for name, x in (("q", q), ("k", k), ("v", v)) if x.dim() != 4)
        raise ValueError(f"{name} must have shape (B, T, H, {'V' if name == 'v' else 'K'}), got {tuple(x.shape)}")
    b, t, hq, size = q.shape
    bk, tk, hk, size_k = k.shape
    bv, tv, hv, size_v = v.shape
    if k.dtype != dtype or v.dtype != dtype:
        raise TypeError(f"k and v must have the dtype of q, {dtype}, got {k.dtype} and {v.dtype}")
    if bk != b or size_k != size or (causal and tk != t):
        time = t if causal else "T"
        raise ValueError(
            f"k must have shape ({b}, {time}, H, {size}) to match q {tuple(q.shape)}"
            f"{' if causal' if causal and tk != t else ''}, got {tuple(k.shape)}"
        )
    if bv != b or tv != tk:
        raise ValueError(f"v must have shape ({b}, {tk}, H, V) to match k {tuple(k.shape)}, got {tuple(v.shape)}")
    h = max(hq, hk, hv)
    if beta is not None:
        if not causal:
            raise ValueError("beta must be None if causal is False, got a tensor")
        if normalize:
            raise ValueError("normalize must be False with beta: the delta rule has no sum to divide by, got True")
        if beta.dim() != 3 or beta.shape[0] != b or beta.shape[1] != t:
            raise ValueError(f"beta must have shape ({b}, {t}, H) to match k {tuple(k.shape)}, got {tuple(beta.shape)}")
        if beta.dtype not in _FLOATS:
            raise TypeError(f"beta must be float16, bfloat16, float32 or float64, got {beta.dtype}")
    if decay is not None:
        if not causal:
            raise ValueError("decay must be None if causal is False, got a tensor")
        per_token = decay.dim() in (3, 4) and decay.shape[:2] == q.shape[:2] and decay.shape[3:] in ((), (size,))
        if decay.dim() != 1 and not per_token:
            raise ValueError(
                f"decay must have shape (H,), ({b}, {t}, H) or ({b}, {t}, H, {size}) to match k {tuple(k.shape)}, "
                f"got {tuple(decay.shape)}"
            )
        if decay.dtype not in _FLOATS:
            raise TypeError(f"decay must be float16, bfloat16, float32 or float64, got {decay.dtype}")
    if not (hq == hk == hv) or beta is not None or decay is not None:
        sizes = {"q": hq, "k": hk, "v": hv}
        if beta is not None:
            sizes["beta"] = beta.shape[2]
        if decay is not None:
            sizes["decay"] = decay.shape[0] if decay.dim() == 1 else decay.shape[2]
        for name, n in sizes.items():
            if n != h and (n == 0 or h % n or n > h):
                raise ValueError(f"{name} must have a divisor of {h} heads, the most in q, k, v (B, T, H, D), got {n}")
    if reverse and not causal:
        raise ValueError("reverse must be False if causal is False, got True")
    if ends_k is not None and (causal or ends is None):
        raise ValueError("cu_seqlens_k must be None unless causal is False and cu_seqlens is given, got a tensor")
    for name, x, length in (("cu_seqlens", ends, t), ("cu_seqlens_k", ends_k, tk)):  # type: ignore[assignment]
        if x is None:
            continue
        if x.dim() != 1 or x.shape[0] < 1:
            raise ValueError(f"{name} must have shape (N + 1,), got {tuple(x.shape)}")
        if x.dtype != torch.int64:
            raise TypeError(f"{name} must be torch.int64, got {x.dtype}")
        if b != 1:
            raise ValueError(f"q must have a batch of 1 where {name} is given, got {b}")
        if x.shape[0] == 1 and length:
            raise ValueError(f"{name} must rise from 0 to the {length} tokens, got one number")
    if ends is not None and ends_k is not None and ends_k.shape != ends.shape:
        raise ValueError(f"cu_seqlens_k must have shape {tuple(ends.shape)} as cu_seqlens, got {tuple(ends_k.shape)}")
    if ends is not None and ends_k is None and t != tk:
        raise ValueError(f"cu_seqlens_k must be given where k has {tk} tokens and q {t}, got None")
    if state is not None:
        n = b if ends is None else ends.shape[0] - 1
        shape = (n, h if causal else heads(k, v), size, size_v + normalize)
        if state.shape != shape:
            column = ", with the column of the sums of keys that normalize needs" if normalize else ""
            raise ValueError(f"initial_state must have shape {shape}{column}, got {tuple(state.shape)}")
        if state.dtype != torch.float64 and (state.dtype != torch.float32 or dtype == torch.float64):
            kinds = "float64" if dtype == torch.float64 else "float32 or float64"
            raise TypeError(f"initial_state must be {kinds}, got {state.dtype}")
    for name, y in zip(_NAMES, tensors, strict=True):
        if y is not None and y is not q and y.device != device:
            raise TypeError(f"{name} must be on the device of q, {device}, got {y.device}")
    scale = (size or 1) ** -0.5 if scale is None else scale
    most = torch.finfo(wide(q)).max
    if not -most <= scale <= most:
        raise ValueError(f"scale must be finite in {wide(q)}, got {scale}")
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be at least 0 and finite, got {eps}")
    return float(scale)
