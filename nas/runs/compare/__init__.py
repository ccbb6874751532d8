"""Comparing runs: means over seeds, tests of their differences, and what random baselines say of them."""
