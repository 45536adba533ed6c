"""The web page: rows and records to a folder of files that opens from the disk."""
