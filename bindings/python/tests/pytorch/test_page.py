"""The code of torch.md runs as it stands."""

import contextlib
import io
import os
import re
import tempfile
import unittest

import support

import torch


class TestReadme(unittest.TestCase):
    def test_the_code(self):
        text = (support.ROOT / "bindings" / "python" / "torch.md").read_text(encoding="utf-8")
        blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        self.assertEqual(len(blocks), 2)
        self.assertLessEqual(len(blocks[0].splitlines()), 15)
        torch.manual_seed(0)
        names = {}
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            before = os.getcwd()
            os.chdir(folder)
            try:
                for block in blocks:
                    exec(compile(block, "torch.md", "exec"), names)
            finally:
                os.chdir(before)
        self.assertLess(names["loss"].item(), 0.1)


if __name__ == "__main__":
    unittest.main()
