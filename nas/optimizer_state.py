"""An optimizer's state as named tensors and JSON, and back, for checkpoints without pickle."""

from collections.abc import Mapping

from torch import Tensor, empty_like
from torch.optim import Optimizer

from nas.errors import CheckpointError


def optimizer_tensors(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Splits an optimizer's state into flat tensors and JSON that names them; the tensors are not copied."""
    tensors: dict[str, Tensor] = {}

    def split(value: object, key: str) -> object:
        if isinstance(value, Tensor):
            tensors[key] = value
            return {"tensor": key}
        if isinstance(value, dict):
            return {str(name): split(item, f"{key}.{name}") for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [split(item, f"{key}.{index}") for index, item in enumerate(value)]
        return value

    return tensors, {key: split(value, key) for key, value in optimizer.state_dict().items()}


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], state: Mapping[str, object]) -> None:
    """Undoes `optimizer_tensors`; the optimizer gets copies.

    Raises:
        CheckpointError: The state belongs to an optimizer with other parameters.
    """

    def join(value: object) -> object:
        match value:
            case {"tensor": str(key), **rest} if not rest:
                return tensors[key].clone()
            case dict():
                return {name: join(item) for name, item in value.items()}
            case list():
                return [join(item) for item in value]
        return value

    try:
        joined = {key: join(value) for key, value in state.items()}
        slots, groups = joined["state"], joined["param_groups"]
        assert isinstance(slots, dict)
        assert isinstance(groups, list)
        for now, group in zip(optimizer.param_groups, groups, strict=True):
            # JSON has lists only, and Adam's betas are a tuple.
            group.update({key: tuple(group[key]) for key in now.keys() & group.keys() if isinstance(now[key], tuple)})
        by_index = {int(index): slot for index, slot in slots.items()}
        optimizer.load_state_dict({"state": by_index, "param_groups": groups})
        for parameter, slot in optimizer.state.items():
            slot.update({name: _laid_out(value, parameter) for name, value in slot.items()})
    except (KeyError, ValueError) as error:
        name = type(optimizer).__name__
        raise CheckpointError(f"the saved {name} had other parameters ({error}); use a new run folder") from error


def _laid_out(value: object, parameter: Tensor) -> object:
    """Returns a tensor of a parameter's shape in its memory format too: torch's fused steps read memory in order."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    return empty_like(parameter, dtype=value.dtype).copy_(value)
