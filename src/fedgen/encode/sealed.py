"""Sealed prompts: what a device sends to be continued or drawn, in place of text and tokens; docs/privacy.md."""

import torch

from fedgen import tree
from fedgen.backbones import Backbone
from fedgen.errors import BackboneError, DataError
from fedgen.records import Rows

MARK = "sealed for"  # the note with the content hash of the backbone that can read it
NUMBERS = torch.float32, torch.float16, torch.bfloat16
MASK = "seen"  # which states are no padding, in whole numbers


def seal(prompt: str, backbone: Backbone) -> bytes:
    """The prompt as a message or a file: hidden states as safetensors."""
    if not prompt.strip():
        raise DataError("seal: wanted a prompt, came a blank one")
    return tree.pack(backbone.seal(prompt), {MARK: backbone.hash})


def unseal(raw: bytes, backbone: Backbone, where: str) -> Rows:
    """What this backbone is to be told."""
    states, notes = tree.unpack(raw, where)
    if notes.get(MARK) != backbone.hash:
        came = f"came one for {notes[MARK][:16]}" if MARK in notes else "came something else"
        wish = f"a prompt sealed for '{backbone.name}' ({backbone.hash[:16]})"
        raise BackboneError(f"{where}: wanted {wish}, {came}; seal it with `fedgen seal` and the same backbone")
    for key, value in states.items():
        if value.dtype not in ((torch.int64,) if key == MASK else NUMBERS):
            wish = "int64" if key == MASK else "float32, float16 or bfloat16"
            came = str(value.dtype).removeprefix("torch.")
            raise BackboneError(f"{where}: wanted '{key[:40]}' in {wish}, came {came}; seal it with `fedgen seal`")
    return states
