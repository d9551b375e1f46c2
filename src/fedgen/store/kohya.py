"""A UNet's adapter as A1111, ComfyUI and kohya's own scripts spell it. It is written alone."""

import re

import torch

from fedgen.lora import pairs, rank
from fedgen.records import Tree
from fedgen.tree import pack

# kohya's words for what a UNet was made from, by the width of the text that it reads
VERSIONS = {768: "sd_v1", 1024: "sd_v2", 2048: "sdxl_base_v1-0"}


def kohya(tree: Tree, backbone: str, name: str) -> bytes:
    """The file's content: every alpha is the rank, so that no reader scales anything."""
    found: Tree = {}
    for pair in pairs(tree):
        layer = "lora_unet_" + pair.path.replace(".", "_")
        found[f"{layer}.lora_down.weight"] = pair.a
        found[f"{layer}.lora_up.weight"] = pair.b
        found[f"{layer}.alpha"] = torch.tensor(float(rank(tree)))
    return pack(found, _notes(tree, backbone, name))


def _notes(tree: Tree, backbone: str, name: str) -> dict[str, str]:
    read = [pair.a.shape[1] for pair in pairs(tree) if re.search(r"attn2\.to_[kv]$", pair.path)]
    version = VERSIONS.get(read[0], backbone) if read else backbone
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank(tree)),
        "ss_network_alpha": str(float(rank(tree))),
        "ss_base_model_version": version,
        "ss_v2": str(version == "sd_v2"),
        "ss_sd_model_name": backbone,
        "ss_output_name": name,
    }
