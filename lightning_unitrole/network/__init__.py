"""How a model is built and run: its layers, its maps, and what keeps it undisturbed."""
