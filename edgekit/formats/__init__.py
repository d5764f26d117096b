"""Bytes only: packing, safetensors, weight blobs; no knowledge of models."""
