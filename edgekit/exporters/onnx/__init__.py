"""The ONNX exporter: weight file, graph, and the way back."""
