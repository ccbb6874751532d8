"""REBAR and RELAX: score functions whose control variate sees the relaxation of the very noise that was drawn."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, isfinite, nn

from nas.estimators import RunningMean, gumbel_max, rebar, relax
from nas.estimators.relaxed import require_temperature
from nas.selection import Selection
from nas.selectors.base import LossOf, Selector
from nas.space import Cell


class Tempered(nn.Module):
    """A temperature that is learned.

    Args:
        temperature: Initial value.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log())

    @property
    def temperature(self) -> Tensor:
        """The temperature, (), positive."""
        return self.log_temperature.exp()


class RebarMemory(Tempered):
    """What REBAR learns beside the logits: the temperature, and the control variate's scale."""

    def __init__(self, temperature: float) -> None:
        super().__init__(temperature)
        self.scale = nn.Parameter(torch.ones(()))


class RelaxMemory(Tempered):
    """What RELAX learns beside the logits: the temperature, the critic, and the mean of past losses.

    Without the mean the critic would have to learn the level of the loss first.

    Args:
        temperature: Initial value.
        critic: Maps relaxed decisions to a number.
    """

    def __init__(self, temperature: float, critic: nn.Module) -> None:
        super().__init__(temperature)
        self.critic = critic
        self.mean = RunningMean()


class Critic(nn.Module):
    """A network with one hidden layer on the relaxed decisions of all cells, giving a number.

    Args:
        size: Number of logits in all cells.
        hidden: Width of the hidden layer.
    """

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(size, hidden), nn.Tanh(), nn.Linear(hidden, 1))

    def forward(self, relaxed: Sequence[Tensor]) -> Tensor:
        """Returns the control variate, ()."""
        given = torch.cat([table.flatten() for table in relaxed])
        value: Tensor = self.layers(given.to(next(self.parameters()).dtype))
        return value.squeeze(-1).to(given.dtype)


@dataclass(frozen=True, kw_only=True)
class Rebar(Selector):
    """REBAR: unbiased; the supernet itself, run as two relaxed mixtures, is the control variate (2K + 1 candidates).

    Its scale and temperature are learned with the logits, by the gradient of the estimate's squared norm. The supernet
    is differentiated once, so the temperature's gradient takes it as linear around the relaxed decision.

    Source: Tucker et al., 2017, arXiv:1703.07370.

    Attributes:
        temperature: Initial temperature of the relaxation.
    """

    temperature: float = 0.5

    def __post_init__(self) -> None:
        require_temperature(self.temperature)

    def select(self, logits: Tensor, progress: float, generator: Generator) -> Selection:
        """Samples one candidate per edge."""
        return Selection.single_path(gumbel_max(logits, generator))

    def memory(self, cells: Mapping[str, Cell]) -> RebarMemory:
        """Returns temperature and scale."""
        return RebarMemory(self.temperature)

    def objective(
        self,
        loss_of: LossOf,
        logits: Mapping[str, Tensor],
        progress: float,
        generator: Generator,
        memory: nn.Module | None,
    ) -> Tensor:
        """Returns the loss of one decision; its gradient is REBAR's estimate."""
        assert isinstance(memory, RebarMemory)
        return rebar(_of_tables(loss_of, logits), [*logits.values()], memory.temperature, memory.scale, generator)


@dataclass(frozen=True, kw_only=True)
class Relax(Selector):
    """RELAX: unbiased at one candidate per edge; a small network on relaxed decisions is the control variate.

    The network and its temperature are learned with the logits, by the gradient of the estimate's squared norm.

    Source: Grathwohl et al., 2018, arXiv:1711.00123.

    Attributes:
        temperature: Initial temperature of the relaxation.
        hidden: Width of the network's hidden layer.
    """

    temperature: float = 0.5
    hidden: int = 32

    def __post_init__(self) -> None:
        require_temperature(self.temperature)
        if self.hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {self.hidden}")

    def select(self, logits: Tensor, progress: float, generator: Generator) -> Selection:
        """Samples one candidate per edge."""
        return Selection.single_path(gumbel_max(logits, generator))

    def memory(self, cells: Mapping[str, Cell]) -> RelaxMemory:
        """Returns temperature, network and mean."""
        size = sum(len(cell.edges) * cell.candidates for cell in cells.values())
        return RelaxMemory(self.temperature, Critic(size, self.hidden))

    def objective(
        self,
        loss_of: LossOf,
        logits: Mapping[str, Tensor],
        progress: float,
        generator: Generator,
        memory: nn.Module | None,
    ) -> Tensor:
        """Returns the loss of one decision; its gradient is RELAX's estimate for the loss less past ones' mean."""
        assert isinstance(memory, RelaxMemory)
        tables, loss = [*logits.values()], _of_tables(loss_of, logits)
        mean = memory.mean.forward().to(tables[0])
        value = mean + relax(lambda drawn: loss(drawn) - mean, memory.critic, tables, memory.temperature, generator)
        memory.mean.update(value)
        return value


def _of_tables(loss_of: LossOf, logits: Mapping[str, Tensor]) -> Callable[[Sequence[Tensor]], Tensor]:
    """Returns the loss as a function of tables, one-hot (which carry no gradient) or relaxed."""

    def loss(tables: Sequence[Tensor]) -> Tensor:
        pairs = zip(logits.items(), tables, strict=True)
        return loss_of(
            {
                name: Selection.mixture(table, isfinite(given))
                if table.requires_grad
                else Selection.single_path(table).detach()
                for (name, given), table in pairs
            }
        )

    return loss
