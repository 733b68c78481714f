"""The code of jax.md runs as it stands."""

import unittest

import support
from protocol import run_page


class TestPage(unittest.TestCase):
    def test_the_code(self):
        blocks, names = run_page(support.ROOT / "bindings" / "python" / "jax.md")
        self.assertEqual(len(blocks), 5)
        self.assertLessEqual(len(blocks[0].splitlines()), 15)
        self.assertLess(float(names["loss"]), 16)  # 64 at first
        self.assertEqual(int(names["state"].count), 1)


if __name__ == "__main__":
    unittest.main()
