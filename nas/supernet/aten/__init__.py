"""The cell in stock torch operations, on any device."""

from nas.supernet.aten.execution import run_cell

__all__ = ["run_cell"]
