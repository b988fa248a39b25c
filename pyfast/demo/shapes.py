"""Shapes of well-known networks' parameters, for demonstrations and races that need the sizes and not the weights."""

from collections.abc import Iterator


def resnet50(classes: int = 1000) -> Iterator[tuple[int, ...]]:
    """The shapes of ResNet-50's 161 parameter tensors, 25.6 million numbers, in module order.

    Source: He et al., 2016, https://arxiv.org/abs/1512.03385, table 1.

    Example:
        >>> import math
        >>> from pyfast.demo import shapes
        >>> len(list(shapes.resnet50())), sum(map(math.prod, shapes.resnet50()))
        (161, 25557032)
    """

    def convolution(out: int, into: int, k: int) -> Iterator[tuple[int, ...]]:
        yield from [(out, into, k, k), (out,), (out,)]  # weight; batch norm's scale and shift

    yield from convolution(64, 3, 7)
    into = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield from convolution(width, into, 1)
            yield from convolution(width, width, 3)
            yield from convolution(4 * width, width, 1)
            if block == 0:
                yield from convolution(4 * width, into, 1)
            into = 4 * width
    yield from [(classes, into), (classes,)]
