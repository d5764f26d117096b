"""The Core ML exporter: the package, its program, and the way back."""
