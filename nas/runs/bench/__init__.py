"""`nas bench`: how fast a backend takes the steps of a run, against the reference execution and a plain network."""

from nas.runs.bench.latency import latency_table
from nas.runs.bench.measure import bench

__all__ = ["bench", "latency_table"]
