"""Pre-train a model: assemble a run, record it, show it."""
