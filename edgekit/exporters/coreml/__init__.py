"""The Core ML exporter: the package, its program, and reading it back."""
