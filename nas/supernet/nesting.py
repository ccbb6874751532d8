"""Which candidates of an edge nest: the parameters of one, as shapes, are parts of those of another."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)

Part = tuple[slice, ...]
"""Of a tensor, one slice per dimension."""


@dataclass(frozen=True, eq=False)
class Share:
    """A parameter that is part of a larger one."""

    small: Tensor
    large: Tensor
    part: Part

    def of(self, tensor: Tensor) -> Tensor:
        """Returns the part of a tensor of the larger one's shape."""
        return tensor[self.part]


def shares(candidates: Sequence[nn.Module]) -> Iterator[Share]:
    """Yields the parameters of candidates that nest in larger ones; each candidate in the largest in which it does."""
    largest: list[nn.Module] = []
    for module in sorted(candidates, key=lambda each: -sum(p.numel() for p in each.parameters())):
        found = next((each for large in largest if (each := nested(module, large))), None)
        if found is None:
            largest.append(module)
        else:
            yield from found


def nested(small: nn.Module, large: nn.Module) -> list[Share]:
    """Returns which parts of `large`'s parameters make up those of `small`; nothing unless all of them nest.

    Both must have modules of the same types and settings at the same names. Convolutions may differ in their kernels,
    of which a smaller one is the centre, and in their channels, of which fewer are the first. Norms may differ in their
    channels and are not shared. Candidates of equal sizes do not nest, and nothing without convolutions does.
    """
    ours, theirs = dict(small.named_modules()), dict(large.named_modules())
    if ours.keys() != theirs.keys():
        return []
    found: list[Share] = []
    for name, module in ours.items():
        other = theirs[name]
        if type(module) is not type(other):
            return []
        if isinstance(module, nn.Conv2d) and isinstance(other, nn.Conv2d):
            part = _part(module, other)
            if part is None:
                return []
            found.append(Share(module.weight, other.weight, part))
            if module.bias is not None and other.bias is not None:
                found.append(Share(module.bias, other.bias, part[:1]))
        elif not isinstance(module, NORMS) and ([*module.parameters(recurse=False)] or not _alike(module, other)):
            return []
    return found if any(each.small.shape != each.large.shape for each in found) else []


def _part(small: nn.Conv2d, large: nn.Conv2d) -> Part | None:
    """Returns the part of the weight of `large` that computes what `small` does; None if there is none."""
    if (small.stride, small.dilation, small.padding_mode) != (large.stride, large.dilation, large.padding_mode):
        return None
    if (small.bias is None) != (large.bias is None) or isinstance(small.padding, str) or isinstance(large.padding, str):
        return None
    depthwise = all(conv.groups == conv.in_channels == conv.out_channels for conv in (small, large))
    ours, theirs = ((conv.groups, conv.in_channels, conv.out_channels) for conv in (small, large))
    if not (depthwise or ours == theirs or small.groups == large.groups == 1):
        return None
    channels = [*zip(small.weight.shape[:2], large.weight.shape[:2], strict=True)]
    if any(few > many for few, many in channels):
        return None
    margins = [wide - narrow for narrow, wide in zip(small.kernel_size, large.kernel_size, strict=True)]
    for axis, margin in enumerate(margins):
        # Off centre the two would not read the same pixels.
        centred = 2 * (int(large.padding[axis]) - int(small.padding[axis])) == small.dilation[axis] * margin
        if margin < 0 or margin % 2 or not centred:
            return None
    first = [slice(0, few) for few, _ in channels]
    centre = [slice(m // 2, m // 2 + size) for m, size in zip(margins, small.kernel_size, strict=True)]
    return (*first, *centre)


def _alike(one: nn.Module, other: nn.Module) -> bool:
    """Returns whether two modules of one type have the same settings: what their attributes hold, but for modules."""
    pairs = [(vars(one)[name], vars(other).get(name)) for name in vars(one) if name[:1] != "_" and name != "training"]
    return all(a is b or (isinstance(a, bool | int | float | str | tuple) and a == b) for a, b in pairs)
