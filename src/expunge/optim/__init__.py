"""How a step is taken: optimizers, rules around a step (SAM, smoothing, Sophia's curvature), weight masks."""
