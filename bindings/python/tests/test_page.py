"""The code of jax.md runs as it stands."""

import contextlib
import io
import os
import re
import tempfile
import unittest

import support  # noqa: F401  (first: it chooses the platform)


class TestPage(unittest.TestCase):
    def test_the_code(self):
        text = (support.ROOT / "bindings" / "python" / "jax.md").read_text(encoding="utf-8")
        blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        self.assertEqual(len(blocks), 5)
        self.assertLessEqual(len(blocks[0].splitlines()), 15)
        names = {}
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            before = os.getcwd()
            os.chdir(folder)
            try:
                for block in blocks:
                    exec(compile(block, "jax.md", "exec"), names)
            finally:
                os.chdir(before)
        self.assertLess(float(names["loss"]), 16)  # 64 at first
        self.assertEqual(int(names["state"].count), 1)


if __name__ == "__main__":
    unittest.main()
