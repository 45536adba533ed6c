"""The regression gate: what is measured now against a baseline that was kept."""
