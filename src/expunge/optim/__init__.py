"""How a step is made: optimizers, rules around a step (SAM, smoothing, Sophia's curvature), weight masks."""
