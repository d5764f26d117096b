"""Devices: their profiles, the facts of this machine, and which artifacts they can run."""
