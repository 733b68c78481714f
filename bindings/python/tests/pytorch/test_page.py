"""The code of torch.md runs as it stands."""

import unittest

import support
import torch
from protocol import run_page


class TestPage(unittest.TestCase):
    def test_the_code(self):
        torch.manual_seed(0)
        blocks, names = run_page(support.ROOT / "bindings" / "python" / "torch.md")
        self.assertEqual(len(blocks), 2)
        self.assertLessEqual(len(blocks[0].splitlines()), 15)
        self.assertLess(names["loss"].item(), 0.1)


if __name__ == "__main__":
    unittest.main()
