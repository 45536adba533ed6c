"""What is kept on disk: the cache, readings of instruments, records."""
