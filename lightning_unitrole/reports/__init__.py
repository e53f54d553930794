"""What an analysis finds, as plain data, and pure functions on it."""
