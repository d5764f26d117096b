"""File formats as bytes: packing, safetensors, GGUF, weight blobs; no knowledge of models."""
