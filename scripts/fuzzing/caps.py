"""The limits on what an untrusted file may cost, read from the code.

The value is read from the code, so that the table in docs/security.md cannot be wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

_CAPS: Final = """
config.json and other small JSON files, bytes | edgekit.strict_json.MAX_OBJECT_BYTES
index of the shards, bytes | edgekit.model_files.MAX_INDEX_BYTES
depth of JSON | edgekit.strict_json.MAX_DEPTH
header of a safetensors file, bytes | edgekit.formats.safetensors.MAX_HEADER_BYTES
axes of a safetensors tensor | edgekit.formats.safetensors._MAX_RANK
values of a safetensors tensor | edgekit.formats.safetensors._MAX_ELEMENTS
tensors of a GGUF file | edgekit.formats.gguf.MAX_TENSORS
keys of a GGUF file | edgekit.formats.gguf.MAX_KEYS
text in a GGUF file, bytes | edgekit.formats.gguf.MAX_STRING_BYTES
items of all arrays of a GGUF file | edgekit.formats.gguf.MAX_ITEMS
one array of a GGUF file that is read, bytes | edgekit.formats.gguf.MAX_ARRAY_BYTES
tokens of a GGUF file | edgekit.checkpoint.gguf.tokenizer.MAX_TOKENS
token of a GGUF file, bytes | edgekit.checkpoint.gguf.tokenizer.MAX_TOKEN_BYTES
parts of a split GGUF file | edgekit.checkpoint.gguf.file._MAX_PARTS
values of a GGUF tensor | edgekit.formats.gguf._MAX_ELEMENTS
layers of a decoder | edgekit.families.spec.MAX_LAYERS
width, heads, vocabulary of a decoder | edgekit.families.spec.MAX_WIDTH
channels of a head | edgekit.families.spec.MAX_HEAD_WIDTH
tokenizer.json, bytes | edgekit.text.tokenizer_file.MAX_TOKENIZER_BYTES
growth of a text in a normalizer, times | edgekit.text.tokenizer_limits.MAX_GROWTH
regex of a tokenizer, characters | edgekit.text.tokenizer_limits.MAX_PATTERN_CHARS
ids put around a text | edgekit.text.tokenizer_limits.MAX_ADDED_IDS
chat template, bytes | edgekit.text.chat.MAX_TEMPLATE_BYTES
work of a chat template, units | edgekit.text.sandbox._MAX_UNITS
time of a chat template, seconds | edgekit.text.sandbox._MAX_S
integer in a chat template, bits | edgekit.text.sandbox._MAX_INT_BITS
manifest of an artifact, bytes | edgekit.artifact.MAX_MANIFEST_BYTES
model spec of a Core ML package, bytes | edgekit.formats.mlpackage._MAX_SPEC_BYTES
device profile, bytes | edgekit.devices.profile.MAX_PROFILE_BYTES
event of a server's stream, bytes | edgekit.runtime.server_sse.MAX_EVENT_BYTES
listing of a repository on the Hub, bytes | edgekit.hub.listing._MAX_LISTING_BYTES
asset on the Hub, bytes | edgekit.hub.listing._MAX_ASSET_BYTES
part of an error message, characters | edgekit.errors._MAX_PART_CHARS
"""


@dataclass(frozen=True)
class Cap:
    """One cap: what it bounds, and the constant that says how."""

    what: str
    module: str
    name: str
    value: Any

    @property
    def shown(self) -> str:
        """The value, large ones as a power of two where they are one."""
        value = self.value
        if isinstance(value, int) and value >= 1 << 20 and not value & (value - 1):
            return f"2^{value.bit_length() - 1}"
        return f"{value:,}"


def caps() -> list[Cap]:
    """Read every cap from the code."""
    found = []
    for line in _CAPS.strip().splitlines():
        what, _, place = line.partition(" | ")
        module, _, name = place.rpartition(".")
        found.append(Cap(what, module, name, getattr(import_module(module), name)))
    return found
