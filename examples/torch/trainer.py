#!/usr/bin/env python3
"""Hugging Face's Trainer fine-tunes a pretrained transformer: torch's AdamW beside 4-bit states.

all-MiniLM-L6-v2 learns which of WordNet's 45 lexicographer classes a definition belongs to; all of
its 22.7 M parameters are trained. Every optimizer starts from the same weights and sees the same
batches: `optimizer_cls_and_kwargs` is the one line that differs.

    cargo xtask example trainer [--steps 150] [--out FOLDER]

prints a table, and writes it with the losses to trainer.json and as curves to trainer.svg.
"""

import argparse
import json
import pathlib
import sys

import numpy as np
import safetensors.torch
import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bindings" / "python"))
sys.path.insert(0, str(ROOT / "examples" / "experiments"))

import data
from lowbit.torch import AdamW4bit

LENGTH, BATCH, TEST, CLASSES = 16, 32, 1000, 45
LR = 2e-4

OPTIMIZERS = {
    "torch.optim.AdamW, fused": (torch.optim.AdamW, {"fused": True}),
    "AdamW4bit": (AdamW4bit, {}),
    "AdamW4bit, v in blocks": (AdamW4bit, {"v": "block"}),
}


class Definitions(torch.utils.data.Dataset):
    """Some of WordNet's definitions, as the Trainer takes them.

    tokens: int64[n, LENGTH]. lengths, labels: int64[n].
    """

    def __init__(self, tokens, lengths, labels):
        self.tokens, self.lengths, self.labels = tokens, lengths, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        mask = (torch.arange(LENGTH) < self.lengths[i]).long()
        return {"input_ids": self.tokens[i], "attention_mask": mask, "labels": self.labels[i]}


def definitions(train):
    """Two Definitions, which share none: for training, and TEST for testing."""
    found = data.definitions(LENGTH)
    order = np.random.default_rng(0).permutation(len(found.labels))
    arrays = (found.tokens, found.lengths, found.labels)
    arrays = [torch.from_numpy(array.astype(np.int64)) for array in arrays]
    parts = order[TEST : TEST + train], order[:TEST]
    return [Definitions(*(array[torch.from_numpy(part)] for array in arrays)) for part in parts]


def pretrained():
    """MiniLM with a new head."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        num_labels=CLASSES,
    )
    model = transformers.BertForSequenceClassification(config)
    weights = safetensors.torch.load_file(data.folder("minilm") / "model.safetensors")
    weights.pop("embeddings.position_ids", None)
    model.bert.load_state_dict(weights)
    return model


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def trainer_for(optimizer, model, train, test, folder, steps, lr=LR, **arguments):
    """A Trainer; the optimizer is a class and its keyword arguments."""
    cls, options = optimizer
    return transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=100,
            weight_decay=0.01,
            warmup_steps=steps // 10,
            lr_scheduler_type="linear",
            logging_steps=max(1, steps // 25),
            seed=0,
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
            disable_tqdm=True,
            **{"save_strategy": "no", **arguments},
        ),
        train_dataset=train,
        eval_dataset=test,
        compute_metrics=accuracy,
        optimizer_cls_and_kwargs=(cls, {"lr": lr, **options}),
    )


def state_bytes(optimizer):
    """Bytes of all states but the count of steps."""
    return sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for key, value in state.items()
        if key != "step"
    )


def fine_tune(name, model, train, test, folder, steps, lr=LR):
    """One run; returns its row of the table."""
    trainer = trainer_for(OPTIMIZERS[name], model, train, test, folder, steps, lr)
    trainer.train()
    scores = trainer.evaluate()
    kept = state_bytes(trainer.optimizer)
    return {
        "optimizer": name,
        "test_loss": scores["eval_loss"],
        "accuracy": 100 * scores["eval_accuracy"],
        "state_bytes": kept,
        "bytes_per_parameter": kept / sum(p.numel() for p in model.parameters()),
        "losses": [(at["step"], at["loss"]) for at in trainer.state.log_history if "loss" in at],
    }


def table(rows):
    lines = [
        "| optimizer | test loss | accuracy, % | state bytes | B/param |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['optimizer']} | {row['test_loss']:.4f} | {row['accuracy']:.1f}"
        f" | {row['state_bytes']} | {row['bytes_per_parameter']:.3f} |"
        for row in rows
    ]
    return "\n".join(lines)


def plot(rows, path):
    """Training losses, and what the states take."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), width_ratios=(3, 2))
    for row, style in zip(rows, ("-", "--", ":")):
        left.plot(*zip(*row["losses"]), style, label=row["optimizer"])
        right.barh(row["optimizer"], row["state_bytes"] / 1e6)
    left.set(xlabel="step", ylabel="training loss, nats")
    left.legend()
    right.set(xlabel="states, MB")
    right.invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description="see the head of this file")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "target" / "trainer")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    train, test = definitions(BATCH * arguments.steps)
    rows = []
    for name in OPTIMIZERS:
        rows.append(fine_tune(name, pretrained(), train, test, arguments.out, arguments.steps))
        record = {
            "steps": arguments.steps,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "rows": rows,
        }
        (arguments.out / "trainer.json").write_text(json.dumps(record, indent=1) + "\n")
    print(table(rows))
    plot(rows, arguments.out / "trainer.svg")


if __name__ == "__main__":
    main()
