"""Adapters as PEFT wrote them: what is more than plain LoRA is refused, and the scale goes into B."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fedgen.errors import StoreError
from fedgen.lora import Pair, pairs, resize, tree_of
from fedgen.records import Tree

BEYOND = (  # settings with which an adapter is more than a pair of factors a layer
    "use_dora", "lora_bias", "modules_to_save", "use_qalora", "layer_replication", "alora_invocation_tokens",
    "target_parameters", "trainable_token_indices", "use_bdlora", "kasa_config", "arrow_config", "monteclora_config",
)  # fmt: skip
MOVES_WEIGHTS = ("pissa", "olora", "corda", "loftq", "lora_ga")  # starts that change the backbone itself


def fold_scale(tree: Tree, config: Mapping[str, Any], where: Path) -> Tree:
    """The tree with its scale in B and one rank everywhere."""
    _refuse_beyond(config, where)
    scaled = [Pair(pair.path, pair.a, _times(pair.b, _scale(pair, config, where))) for pair in pairs(tree)]
    ranks = {pair.a.shape[0] for pair in scaled}
    return resize(tree_of(scaled), max(ranks)) if len(ranks) > 1 else tree_of(scaled)


def _refuse_beyond(config: Mapping[str, Any], where: Path) -> None:
    odd = [name for name in BEYOND if config.get(name)]
    odd += ["bias"] if config.get("bias", "none") != "none" else []
    odd += ["peft_type"] if config.get("peft_type") != "LORA" else []
    odd += ["init_lora_weights"] if str(config.get("init_lora_weights")).startswith(MOVES_WEIGHTS) else []
    if odd:
        raise StoreError(f"{where}: {odd[0]} = {config.get(odd[0])!r} is not plain LoRA; export it as plain LoRA")


def _scale(pair: Pair, config: Mapping[str, Any], where: Path) -> float:
    """What the readers multiply B A by."""
    wide = pair.a.shape[0]
    patterns = config.get("alpha_pattern") or {}
    try:
        named = [alpha for name, alpha in patterns.items() if re.match(rf"(.*\.)?({name})$", pair.path)]
    except (re.error, AttributeError) as error:
        raise StoreError(f"{where}: alpha_pattern must be patterns of layer names, came {patterns!r}") from error
    alpha = (*named, config.get("lora_alpha"))[0]
    if not isinstance(alpha, int | float):
        raise StoreError(f"{where}: lora_alpha must be a number, came {alpha!r}")
    return alpha / (math.sqrt(wide) if config.get("use_rslora") else wide)


def _times(value: Tensor, by: float) -> Tensor:
    return value if by == 1 else value * by
