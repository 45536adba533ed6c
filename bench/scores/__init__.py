"""Arrays to scores; one file a family. Nothing here runs a network."""
