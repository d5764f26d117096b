"""One question per file: what a device can run, and what is known of it."""
