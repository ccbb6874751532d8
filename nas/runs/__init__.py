"""The stages of a run: search, derive, retrain, and the gap."""
