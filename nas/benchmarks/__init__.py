"""Tabular benchmarks: published accuracies and measured costs of every architecture of a space."""

from nas.benchmarks.table import Benchmark, Entry, Table, tables_of

__all__ = ["Benchmark", "Entry", "Table", "tables_of"]
