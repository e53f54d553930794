"""Reports in words, numbers and pictures."""
