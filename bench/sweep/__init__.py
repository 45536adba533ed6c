"""Sweeps: many runs from one plan, on one machine or a cluster; the results are all the state."""
