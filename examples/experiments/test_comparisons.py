"""The statistics against textbook forms and known tables."""

import unittest

import numpy as np
import scipy.stats

import comparisons
import training


class TestComparisons(unittest.TestCase):
    def test_interval_and_tests_are_those_of_scipy(self):
        values = dict(enumerate([0.010, -0.004, 0.013, 0.002, 0.006]))
        found = comparisons.compare(values, 0.02)
        sample = list(values.values())
        low, high = scipy.stats.ttest_1samp(sample, 0).confidence_interval(0.9)
        self.assertAlmostEqual(found.low, low)
        self.assertAlmostEqual(found.high, high)
        upper = scipy.stats.ttest_1samp(sample, 0.02, alternative="less").pvalue
        lower = scipy.stats.ttest_1samp(sample, -0.02, alternative="greater").pvalue
        self.assertAlmostEqual(found.p, max(upper, lower))
        self.assertEqual(found.verdict, "equivalent")

    def test_verdicts(self):
        def verdict(*values):
            return comparisons.compare(dict(enumerate(values)), 0.1).verdict

        self.assertEqual(verdict(0.03, 0.02, 0.04), "equivalent (a little worse)")
        self.assertEqual(verdict(0.5, 0.51, 0.49), "worse")
        self.assertEqual(verdict(-0.5, -0.51, -0.49), "better")
        self.assertEqual(verdict(0.5, -0.5, 0.1), "undecided")
        self.assertEqual(verdict(0.11, 0.13, 0.09), "worse, by how much is open")
        self.assertEqual(verdict(0.0, 0.01), "too few seeds")
        self.assertEqual(verdict(0.0, np.nan, 0.0), "fails: not finite")

    def test_fisher(self):
        # The lady tasting tea: 3 of 4 against 1 of 4 is 17/70.
        self.assertAlmostEqual(comparisons.fisher(3, 4, 1, 4), 17 / 70)

    def test_unstable(self):
        self.assertFalse(training.unstable(8.0, [8.0, 7.0, 6.0, 6.4]))
        self.assertTrue(training.unstable(8.0, [8.0, 6.0, 6.6, 5.0]))
        self.assertTrue(training.unstable(8.0, [8.0, float("nan")]))
        self.assertTrue(training.unstable(float("inf"), [8.0]))
        # The rise lies in the 40 steps of warm-up.
        self.assertFalse(training.unstable(8.0, [5.0, 7.0, 6.5, 6.0], warmup=40))
        # It blew up in warm-up and comes down from there.
        self.assertTrue(training.unstable(8.0, [900.0, 800.0, 700.0], warmup=20))


if __name__ == "__main__":
    unittest.main()
