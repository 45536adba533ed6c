"""The networks that measure images; one file a kind."""
