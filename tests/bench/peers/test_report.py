"""The figures, tables and files that are made of measurements: `python3 -m unittest` here."""

import contextlib
import io
import json
import math
import pathlib
import tempfile
import unittest

import cases
import report
import summary


def result(rounds, slow=()):
    """A measurement of 1000 parameters, one round for each dict of seconds."""
    names = dict.fromkeys(name for seconds in rounds for name in seconds)
    contestants = {
        name: {"error": 0.0, "slow": name in slow, "state_bytes": 8000, "bytes": 28000}
        | {"working_set": 16000}
        for name in names
    }
    memory = {summary.IN_PLACE: 1e-6, summary.COPY: 2e-6}
    return {
        "settings": {"case": "one", "threads": 1, "rounds": len(rounds), "library": "x"}
        | {"machine": {"caches": {"L2": 500, "L3": 1000}}},
        "title": "one",
        "numel": 1000,
        "contestants": contestants,
        "rounds": [
            {"seconds": seconds | memory, "cores": dict.fromkeys(seconds, 1.0)}
            for seconds in rounds
        ],
    }


class TestSummary(unittest.TestCase):
    def test_ratios_are_of_times_in_one_round(self):
        # The machine slows down threefold: that is in the medians, and not in the ratio.
        rounds = [{"a": 1.0, "b": 2.0}, {"a": 1.0}, {"a": 3.0, "b": 6.0}, {"a": 3.0}, {"a": 3.0}]
        self.assertEqual(summary.ratio(result(rounds), "b", "a"), 2.0)
        self.assertIsNone(summary.ratio(result([{"a": 1.0}, {"b": 1.0}]), "a", "b"))

    def test_figures_of_a_row(self):
        row = summary.row(result([{"torch fused": 4e-6, "x": t} for t in (1e-6, 2e-6, 3e-6)]), "x")
        self.assertAlmostEqual(row["ns"], 2.0)
        self.assertAlmostEqual(row["bytes"], 28.0)
        self.assertAlmostEqual(row["rate"], 14e9)
        self.assertAlmostEqual(row["fraction"], 14 / 8)
        self.assertAlmostEqual(row["speedup"], 2.0)
        self.assertAlmostEqual(row["spread"], 0.25)

    def test_who_is_not_timed_is_named_with_the_reason(self):
        given = result([{"torch fused": 1e-6}])
        given["contestants"]["peer"] = {"slow": False, "reason": "no compiler"}
        text = summary.case_table({1: given})
        self.assertIn("peer: no compiler.", text)
        self.assertNotIn("| peer", text)
        self.assertIn("16.0 times the 0 MiB of L3", text)

    def test_all_lines_of_a_table_have_its_columns(self):
        given = result([{"torch fused": 1e-6, "a": 1e-6}, {"torch fused": 1e-6}], slow=["a"])
        texts = [
            summary.case_table({1: given, 2: given}),
            summary.short_table({("one", 1): given, ("one", 2): given}, {"one": "One"}),
        ]
        for text in texts:
            widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
            self.assertEqual(len(widths), 1, text)


class TestReport(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def test_results_of_another_build_are_left_out(self):
        mine, other = result([{"torch fused": 1e-6}]), result([{"torch fused": 1e-6}])
        other["settings"] |= {"threads": 2, "library": "y"}
        (self.folder / "one-2.json").write_text(json.dumps(other))
        (self.folder / "one-1.json").write_text(json.dumps(mine))
        with contextlib.redirect_stdout(io.StringIO()) as said:
            loaded = report.load(self.folder)
        self.assertEqual(list(loaded), [("one", 1)])
        self.assertIn("one-2.json is of another build", said.getvalue())
        self.assertIn("one on 2 threads", report.unfinished(loaded))

    def test_only_what_is_between_the_markers_is_replaced(self):
        page = self.folder / "README.md"
        page.write_text("a\n<!-- cargo xtask peers -->\nold\n<!-- end -->\nb\n<!-- end -->\n")
        report.fill(page, "new")
        text = "a\n<!-- cargo xtask peers -->\n\nnew\n\n<!-- end -->\nb\n<!-- end -->\n"
        self.assertEqual(page.read_text(), text)
        report.fill(page, "new")
        self.assertEqual(page.read_text(), text)
        page.write_text("nothing")
        with self.assertRaises(SystemExit):
            report.fill(page, "new")

    def test_compact_json_is_the_same_json(self):
        given = [result([{"a": 1.0}, {"a": 2.0}])]
        self.assertEqual(json.loads(report.compact(given)), given)


class TestCases(unittest.TestCase):
    def test_sizes(self):
        full = cases.cases()
        self.assertAlmostEqual(full["llama"].numel, 100e6, delta=1e6)
        self.assertEqual((full["one"].numel, full["large"].numel), (2**26, 2**28))
        sizes = sorted(math.prod(shape) for shape in full["many"].shapes)
        self.assertEqual(len(sizes), 300)
        self.assertGreater(sizes[0], 9_000)
        self.assertLess(sizes[-1], 1_050_000)
        # Spread evenly on a logarithmic scale: the middle one is near the geometric mean.
        self.assertAlmostEqual(sizes[150] / 1e5, 1, delta=0.1)


if __name__ == "__main__":
    unittest.main()
