"""One question per file: how weights become codes and scales, once, for every format."""
