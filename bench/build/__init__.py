"""The scripts that made the shipped assets; nothing here runs in a benchmark."""
