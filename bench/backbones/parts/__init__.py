"""What pipelines that are trained from scratch are made of: networks, words, captions."""
