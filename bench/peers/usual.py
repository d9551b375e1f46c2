"""A client's turn as Flower's public examples of tuning language models (FlowerTune) write it: all anew in each call.

The client's text is read and tokenised, tokenizer and model are loaded from their folder, the model is wrapped in PEFT,
and transformers' Trainer does the steps; the examples take trl's SFTTrainer, which is one. To their favour nothing is
logged, saved or evaluated, no gradient is checkpointed, and the rows are plain tensors. Most of a short call is spent
where Trainer has Python collect garbage among all objects of the process (accelerate's `free_memory`, once a `train`).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, default_data_collator
from transformers.utils.logging import disable_progress_bar


def wrapped(config: Mapping[str, Any]) -> PeftModel:
    """The model from its folder, in PEFT."""
    disable_progress_bar()
    network = AutoModelForCausalLM.from_pretrained(config["model"], dtype=torch.float32)
    rank, targets = config["rank"], config["targets"]
    return get_peft_model(network, LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, task_type="CAUSAL_LM"))


def turn(config: Mapping[str, Any], client: int, adapter: dict[str, torch.Tensor]) -> tuple[PeftModel, dict[str, Any]]:
    """Train an adapter on a client's text; the model that carries it, and the turn's metrics."""
    own = json.loads((Path(config["folder"]) / f"{client}.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(config["model"])
    rows = rows_of(own["texts"], tokenizer, config["length"])
    model = wrapped(config)
    set_peft_model_state_dict(model, adapter)
    picks = own["picks"][config["server-round"] - 1]
    taken = [rows[at] if at >= 0 else unscored(rows[0]) for step in picks for at in step]
    trainer = Trainer(
        model=model,
        args=arguments(config, len(picks), len(picks[0])),
        data_collator=default_data_collator,
        train_dataset=taken,
        processing_class=tokenizer,
    )
    done = trainer.train()
    terms = sum(int((row["labels"][1:] >= 0).sum()) for row in taken)
    told = {"num-examples": own["examples"], "loss": done.training_loss, "steps": done.global_step, "terms": terms}
    return model, told


def arguments(config: Mapping[str, Any], steps: int, rows: int) -> TrainingArguments:
    """So many steps of AdamW at one rate, on so many rows each, in the order in which they lie."""
    return TrainingArguments(
        output_dir=str(Path(config["folder"]) / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=rows,
        train_sampling_strategy="sequential",
        learning_rate=config["lr"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=config["clip"],
        use_cpu=True,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def rows_of(texts: Sequence[str], tokenizer: Any, length: int) -> list[dict[str, torch.Tensor]]:
    """Texts as one stream cut into rows of `length` predicted tokens, each with the token before them."""
    end = tokenizer.eos_token_id
    found = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    stream = torch.tensor([token for text in found for token in (end, *text)])
    rows = []
    for at in range(0, len(stream) - 1, length):
        piece = stream[at : at + length + 1]
        ids, labels = torch.full((length + 1,), end), torch.full((length + 1,), -100)
        ids[: len(piece)] = labels[: len(piece)] = piece
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def unscored(row: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A row that fills a batch and teaches nothing."""
    return row | {"labels": torch.full_like(row["labels"], -100)}
