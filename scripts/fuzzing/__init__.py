"""The parts of scripts/fuzz.py: one process for each target, and what comes out of it."""
