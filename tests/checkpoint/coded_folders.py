"""The builders of quantized checkpoints under the name that scripts outside know."""

from tests.checkpoint.prequantized.folders import *  # noqa: F403
