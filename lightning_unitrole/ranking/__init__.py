"""From what was measured about units to their order: pure functions on statistics."""
