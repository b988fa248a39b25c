"""Feature maps: functions of queries and keys that take the place of the softmax's exponential."""

from torch import Tensor


def elu_plus_one(x: Tensor) -> Tensor:
    """Exponential below zero, ``x + 1`` above: positive, so that sums of keys can divide.

    As ``elu(x) + 1``, but never rounded to zero where the exponential is not.

    Args:
        x: queries or keys before the map, of any shape and floating dtype.

    Returns:
        Of the shape and dtype of ``x``, positive.

    Raises:
        TypeError: if ``x`` is not floating.

    Example:
        >>> import pyfast, torch
        >>> pyfast.linear_attention.elu_plus_one(torch.tensor([-1.0, 0.0, 2.0]))
        tensor([0.3679, 1.0000, 3.0000])

    Source: Katharopoulos et al., 2020, https://arxiv.org/abs/2006.16236, equation 7.
    """
    _check(x)
    return x.clamp(max=0).exp() + x.relu()


def relu(x: Tensor) -> Tensor:
    """What is positive of queries or keys.

    Args:
        x: queries or keys before the map, of any shape and floating dtype.

    Returns:
        Of the shape and dtype of ``x``, at least 0. Where all of a query is 0, so is every sum that would divide.

    Raises:
        TypeError: if ``x`` is not floating.

    Example:
        >>> import pyfast, torch
        >>> pyfast.linear_attention.relu(torch.tensor([-1.0, 0.0, 2.0]))
        tensor([0., 0., 2.])

    Source: Kasai et al., 2021, https://arxiv.org/abs/2103.13076, which has a learned matrix before it.
    """
    _check(x)
    return x.relu()


def identity(x: Tensor) -> Tensor:
    """Queries and keys as they are, for attention that is not normalized.

    Args:
        x: queries or keys, of any shape and floating dtype.

    Returns:
        ``x`` itself.

    Raises:
        TypeError: if ``x`` is not floating.

    Example:
        >>> import pyfast, torch
        >>> pyfast.linear_attention.identity(torch.tensor([-1.0, 0.0, 2.0]))
        tensor([-1.,  0.,  2.])

    Source: Sun et al., 2023, https://arxiv.org/abs/2307.08621.
    """
    _check(x)
    return x


def _check(x: Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(f"x must be floating, got {x.dtype}")
