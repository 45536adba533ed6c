"""What data sets that lie on the user's disk share: tables, pictures, the index, bias profiles."""
