"""The GGUF exporter: the file that stock llama.cpp opens."""
