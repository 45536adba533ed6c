"""The nouns of fairbench and what keeps them consistent; no torch, and nothing from above."""
