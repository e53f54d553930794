"""The one pipeline: record, rank, ablate, assign roles."""
