"""The Trainer of examples/torch/trainer.py in miniature, and accelerate's loop: a small BERT of
random weights learns made-up classes. Needs transformers and accelerate."""

import os
import pathlib
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[4]
sys.path.insert(0, str(ROOT / "examples" / "torch"))
sys.path.insert(0, str(ROOT / "bindings" / "python" / "tests" / "pytorch"))

# There is nothing to ask a model hub for.
os.environ["HF_HUB_OFFLINE"] = "1"

import accelerate
import support
import torch
import trainer
import transformers

from lowbit.torch import AdamW4bit

WORDS, CLASSES = 128, 4


def model(dropout=0.1):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=WORDS,
        hidden_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=256,
        max_position_embeddings=trainer.LENGTH,
        num_labels=CLASSES,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return transformers.BertForSequenceClassification(config)


def texts(count, seed):
    """Words of which all belong to the text's class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    words = torch.randint(WORDS // CLASSES, (count, trainer.LENGTH), generator=generator)
    lengths = torch.randint(1, trainer.LENGTH + 1, (count,), generator=generator)
    return trainer.Definitions(words * CLASSES + labels[:, None], lengths, labels)


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)


class TestTrainer(Case):
    def test_the_example_in_miniature(self):
        train, test = texts(trainer.BATCH * 20, 0), texts(100, 1)
        rows = [
            trainer.fine_tune(name, model(), train, test, self.folder, 20, lr=3e-3)
            for name in trainer.OPTIMIZERS
        ]
        for row in rows:
            self.assertLess(row["test_loss"], 0.7)  # of ln 4 = 1.39
            self.assertGreater(row["accuracy"], 90)
            self.assertEqual(len(row["losses"]), 20)
        fused, *ours = (row["state_bytes"] for row in rows)
        self.assertEqual(fused, 8 * sum(p.numel() for p in model().parameters()))
        for found in ours:
            self.assertLess(found, fused / 6)
        self.assertEqual(len(trainer.table(rows).splitlines()), 2 + len(rows))
        trainer.plot(rows, self.folder / "plot.svg")
        self.assertIn("AdamW4bit", (self.folder / "plot.svg").read_text())

    def test_a_run_that_is_resumed_ends_with_equal_bits(self):
        train, test = texts(trainer.BATCH * 6, 0), texts(10, 1)

        def run(resume):
            saving = {"save_strategy": "steps", "save_steps": 3}
            optimizer = AdamW4bit, {}
            found = trainer.trainer_for(optimizer, model(), train, test, self.folder, 6, **saving)
            found.train(resume_from_checkpoint=resume)
            return support.snapshot(found.optimizer.optimizer)

        whole = run(None)
        resumed = run(str(self.folder / "checkpoint-3"))
        self.assertTrue(support.same(whole, resumed))
        # Codes and scales are in the Trainer's checkpoint as they are.
        saved = torch.load(self.folder / "checkpoint-3" / "optimizer.pt", weights_only=True)
        dtypes = {v.dtype for v in saved["state"][0].values()}
        self.assertEqual(dtypes, {torch.uint8, torch.float32, torch.int32})


class TestAccelerate(Case):
    def test_its_loop_has_the_bits_of_a_plain_one_and_resumes(self):
        data = torch.utils.data.DataLoader(texts(64, 0), batch_size=8)
        plain = model(dropout=0.0)
        optimizer = AdamW4bit(plain.parameters(), lr=1e-3)
        for step, batch in enumerate(data):
            (plain(**batch).loss / 2).backward()
            if step % 2:
                torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        expected = support.snapshot(optimizer)

        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        net = model(dropout=0.0)
        prepared = accelerator.prepare(net, AdamW4bit(net.parameters(), lr=1e-3), data)
        self.loop(accelerator, *prepared, range(4))
        accelerator.save_state(self.folder)
        self.loop(accelerator, *prepared, range(4, 8))
        self.assertTrue(support.same(support.snapshot(prepared[1].optimizer), expected))
        accelerator.load_state(self.folder)
        self.loop(accelerator, *prepared, range(4, 8))
        self.assertTrue(support.same(support.snapshot(prepared[1].optimizer), expected))

    def loop(self, accelerator, net, optimizer, data, steps):
        """Some of the data's batches, as accelerate wants it written."""
        for step, batch in enumerate(data):
            if step not in steps:
                continue
            with accelerator.accumulate(net):
                accelerator.backward(net(**batch).loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()


if __name__ == "__main__":
    unittest.main()
