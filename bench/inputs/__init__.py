"""Images and labels of the user's: folders, archives, arrays, tables."""
