"""The commands, one file each; every one reads its options, calls a room below, and prints."""
