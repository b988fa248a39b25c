"""Pruning masks of one bit a weight."""

import importlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from pyfast.prune.bits import Shapes, has_stray, pack, popcount, unpack, words
from pyfast.prune.memory import Found, unique
from pyfast.prune.targets import Targets, check, parameters

_FORMAT = "pyfast.prune.BitMask"


@dataclass(frozen=True, eq=False, repr=False)
class BitMask:
    """Which weights are kept: one bit each, 32 times smaller than a float mask.

    Args:
        bits: (words,), int64. Tensor l takes ceil(size_l / 64) words, in order; bit j of its word i is 1 when its
            weight 64 i + j, in C order, is kept. The bits behind the last weight are 0.
        names: one name per tensor, all different.
        shapes: one shape per tensor.

    Raises:
        TypeError: if ``bits`` is not an int64 tensor.
        ValueError: if the numbers of names, shapes and words do not fit together.

    Example:
        >>> import torch, pyfast
        >>> mask = pyfast.prune.BitMask.from_bool({"w": torch.tensor([[True, False], [False, False]])})
        >>> mask.kept, mask.sparsity, mask.nbytes
        (1, 0.75, 8)
        >>> mask.to_bool()["w"].tolist()
        [[True, False], [False, False]]
    """

    bits: Tensor
    names: tuple[str, ...]
    shapes: Shapes

    __hash__ = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if not isinstance(self.bits, Tensor) or self.bits.dtype != torch.int64:
            raise TypeError(
                f"bits must be an int64 tensor, got {getattr(self.bits, 'dtype', type(self.bits).__name__)}"
            )
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "shapes", tuple(tuple(shape) for shape in self.shapes))
        object.__setattr__(self, "bits", self.bits.contiguous())
        if not all(isinstance(name, str) for name in self.names):
            raise TypeError("names must be strings")
        for shape in self.shapes:
            if len(shape) > 64 or not all(type(n) is int and n >= 0 for n in shape):
                raise ValueError("shapes must hold at most 64 sizes each, none negative")
            if math.prod(n for n in shape if n) >= 2**63:
                raise ValueError("shapes must be of tensors with fewer than 2^63 elements")
        if len(self.names) != len(self.shapes) or len(set(self.names)) != len(self.names):
            raise ValueError(f"names must be {len(self.shapes)} different ones, one per shape, got {len(self.names)}")
        n = sum(map(words, self.shapes))
        if self.bits.shape != (n,):
            raise ValueError(f"bits must have shape ({n},) to match shapes, got {tuple(self.bits.shape)}")

    def __repr__(self) -> str:
        return f"BitMask({len(self.names)} tensors, {self.size:,} weights, {self.nbytes:,} bytes, {self.bits.device})"

    @property
    def size(self) -> int:
        """Number of weights, kept or not."""
        return sum(map(math.prod, self.shapes))

    @property
    def kept(self) -> int:
        """Number of weights kept. Waits for the device."""
        return int(popcount(self.bits).sum())

    @property
    def sparsity(self) -> float:
        """Share of weights pruned; 0 when there are none. Waits for the device."""
        return (self.size - self.kept) / self.size if self.size else 0.0

    @property
    def nbytes(self) -> int:
        """Bytes that the bits take."""
        return self.bits.nbytes

    def to(self, device: torch.device | str | int) -> "BitMask":
        """The same mask on another device."""
        return BitMask(self.bits.to(device), self.names, self.shapes)

    def to_bool(self) -> dict[str, Tensor]:
        """A bool tensor per name, True where the weight is kept."""
        return dict(zip(self.names, unpack(self.bits, self.shapes), strict=True))

    @classmethod
    def from_bool(cls, masks: Mapping[str, Tensor]) -> "BitMask":
        """The mask that keeps a weight where its bool is True.

        Args:
            masks: bool tensors of any shape and strides, on one device.

        Raises:
            TypeError: if one is not a bool tensor, or the devices differ.
            ValueError: if there is none.
        """
        if not masks:
            raise ValueError("masks must hold at least one tensor, got none")
        device = None
        for name, mask in masks.items():
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                raise TypeError(
                    f"masks must be bool tensors, got {getattr(mask, 'dtype', type(mask).__name__)} for {name!r}"
                )
            device = device or mask.device
            if mask.device != device:
                raise TypeError(f"masks must be on one device, got {device} and {mask.device} for {name!r}")
        return cls(pack(list(masks.values())), tuple(masks), tuple(tuple(m.shape) for m in masks.values()))

    def apply_(self, targets: Targets) -> None:
        """Set every weight that is not kept to zero, in place; by selection, so infinities and NaN fall too.

        Args:
            targets: a module or a dict, in which every name of the mask is looked up; or a tensor or an iterable of
                tensors (momenta, for example), as many and in the same order as the mask's. Dtypes as in
                ``global_magnitude_``. The bits move to the targets' device if need be.

        Raises:
            ValueError: if a name is missing, a shape differs, or targets overlap.
            TypeError: if a target is no dense tensor of a supported dtype.

        Example:
            >>> import torch, pyfast
            >>> mask = pyfast.prune.BitMask.from_bool({"w": torch.tensor([True, False, True])})
            >>> momentum = torch.ones(3)
            >>> mask.apply_([momentum]); momentum
            tensor([1., 0., 1.])
        """
        found = self._match(targets)
        found.check_writable()
        found.zero_(self.bits.to(found.tensors[0].device))

    def _match(self, targets: Targets) -> Found:
        if isinstance(targets, nn.Module):
            known: Mapping[str, Any] = {name: parameter for _, _, name, parameter in parameters(targets)}
        elif isinstance(targets, Mapping):
            known = targets
        elif not isinstance(targets, (Tensor, Iterable)):
            raise TypeError(f"targets must be a module, a dict or tensors, got {type(targets).__name__}")
        else:
            tensors = [targets] if isinstance(targets, Tensor) else list(targets)
            if len(tensors) != len(self.names):
                raise ValueError(f"targets must hold {len(self.names)} tensors to match the mask, got {len(tensors)}")
            known = dict(zip(self.names, tensors, strict=True))
        for name, shape in zip(self.names, self.shapes, strict=True):
            if name not in known:
                raise ValueError(f"targets must hold every name of the mask, got none called {name!r}")
            check(name, known[name])
            if tuple(known[name].shape) != shape:
                raise ValueError(f"targets must have shape {shape} for {name!r}, got {tuple(known[name].shape)}")
        found = unique([(name, known[name]) for name in self.names])
        for name, other in found.tied.items():
            raise ValueError(f"targets must not share memory, got {name!r} inside {other!r}")
        return found

    def __and__(self, other: "BitMask") -> "BitMask":
        """Keeps what both keep."""
        self._check_alike(other)
        return BitMask(self.bits & other.bits.to(self.bits.device), self.names, self.shapes)

    def __or__(self, other: "BitMask") -> "BitMask":
        """Keeps what either keeps."""
        self._check_alike(other)
        return BitMask(self.bits | other.bits.to(self.bits.device), self.names, self.shapes)

    def __eq__(self, other: object) -> bool:
        """Same names, shapes and bits, on any device."""
        if not isinstance(other, BitMask):
            return NotImplemented
        alike = self.names == other.names and self.shapes == other.shapes
        return alike and torch.equal(self.bits, other.bits.to(self.bits.device))

    def _check_alike(self, other: "BitMask") -> None:
        if not isinstance(other, BitMask):
            raise TypeError(f"other must be a BitMask, got {type(other).__name__}")
        if self.names != other.names or self.shapes != other.shapes:
            mine, theirs = (
                dict(zip(self.names, self.shapes, strict=True)),
                dict(zip(other.names, other.shapes, strict=True)),
            )
            odd = next((n for n in (*mine, *theirs) if mine.get(n) != theirs.get(n)), "the order")
            raise ValueError(f"other must have the same names and shapes, got a difference in {odd!r}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all: an old file stays until the new one is on disk.

        Args:
            path: where to, for example ``"mask.safetensors"``.

        Raises:
            ImportError: if the safetensors package is missing.
        """
        save_file = _safetensors("safetensors.torch").save_file
        names, shapes = json.dumps(self.names), json.dumps(self.shapes)
        target = Path(path)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            save_file({"bits": self.bits.cpu()}, partial, {"format": _FORMAT, "names": names, "shapes": shapes})
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "BitMask":
        """Read a file that ``save`` wrote.

        Args:
            path: the file.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is no such file, or damaged.
            ImportError: if the safetensors package is missing.
        """
        safetensors = _safetensors("safetensors")

        def refuse(what: str) -> ValueError:
            return ValueError(f"path must be a mask written by BitMask.save, got {str(path)!r}, {what}")

        try:
            with safetensors.safe_open(path, framework="pt") as file:
                about, keys = file.metadata() or {}, list(file.keys())
                if about.get("format") != _FORMAT or keys != ["bits"]:
                    raise refuse("which holds something else")
                bits = file.get_tensor("bits")
        except safetensors.SafetensorError as error:
            raise refuse(f"which is damaged or no safetensors file ({error})") from error
        try:
            names, shapes = json.loads(about["names"]), json.loads(about["shapes"])
            if type(names) is not list or type(shapes) is not list or not all(type(s) is list for s in shapes):
                raise TypeError("names and shapes must be lists")
            mask = cls(bits, tuple(names), tuple(map(tuple, shapes)))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise refuse(f"which is damaged ({error})") from error
        if has_stray(mask.bits, mask.shapes):
            raise refuse("which has bits set behind a tensor's last weight")
        return mask

    def to_torch_prune(self, module: nn.Module) -> None:
        """Hand the mask to torch.nn.utils.prune: ``custom_from_mask`` on every layer that owns a named parameter.

        Args:
            module: its parameters are looked up by the mask's names; every owner of a shared parameter gets the mask.

        Raises:
            ValueError: if a name is missing or a shape differs; nothing is changed then.

        Example:
            >>> import torch, pyfast
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
            >>> pyfast.prune.global_magnitude_mask(model, 0.5).mask.to_torch_prune(model)
            >>> int(model[0].weight_mask.sum())
            4
        """
        self._match(module)
        every = parameters(module)
        masks = self.to_bool()
        wanted = {id(parameter): masks[name] for _, _, name, parameter in every if name in masks}
        for owner, own, _, parameter in every:
            if id(parameter) in wanted:
                torch_prune.custom_from_mask(owner, own, wanted[id(parameter)])

    @classmethod
    def from_torch_prune(cls, module: nn.Module) -> "BitMask":
        """The mask of a module pruned by torch.nn.utils.prune, under the names the weights had before.

        Args:
            module: at least one of its layers has a ``weight_mask`` buffer (or another ``*_mask`` of that library).

        Raises:
            ValueError: if none has, or a shared weight has two different masks.

        Example:
            >>> import torch, pyfast
            >>> layer = torch.nn.utils.prune.l1_unstructured(torch.nn.Linear(4, 2), "weight", 3)
            >>> pyfast.prune.BitMask.from_torch_prune(layer).kept
            5
        """
        masks: dict[str, Tensor] = {}
        seen: dict[int, str] = {}
        for owner, own, path, parameter in parameters(module):
            base = own.removesuffix("_orig")
            if base == own or f"{base}_mask" not in owner._buffers:
                continue
            name, mask = path.removesuffix("_orig"), owner.get_buffer(f"{base}_mask") != 0
            first = seen.setdefault(id(parameter), name)
            if first == name:
                masks[name] = mask
            elif not torch.equal(masks[first], mask):
                raise ValueError(f"module must have one mask per weight, got two for {first!r} and {name!r}")
        if not masks:
            raise ValueError("module must be pruned by torch.nn.utils.prune, got no mask in it")
        return cls.from_bool(masks)


def _safetensors(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError("masks are saved and loaded with safetensors: pip install 'pyfast-kernels[cli]'") from error
