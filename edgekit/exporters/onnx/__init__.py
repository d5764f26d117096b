"""The ONNX exporter: weight file, graph, and reading both back."""
