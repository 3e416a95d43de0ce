"""Pure tensor arithmetic on language-model outputs: no model, no I/O."""
