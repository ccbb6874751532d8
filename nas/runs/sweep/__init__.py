"""Sweeps: selectors x seeds x settings as resumable runs, always beside random baselines."""
