"""Tables of levels fitted to real moments: where those of `arms.py` come from.

    run.py fit

A level's error is weighted by what it does to the update, on moments of another seed than those
of the runs. Levels are chosen from a grid by dynamic programming, so the best on the grid is found.
"""

import numpy as np

import quantization_error

SEED = 101
#: Moments are those after so many steps, beta2 = 0.999.
STEPS = (60, 200)
BLOCK = 128
GRID = 256


def best_levels(grid, weight, count, stochastic, first_is_free=False):
    """The `count` points of an increasing grid with the least weighted squared error.

    weight: how much each grid point counts as a value.
    stochastic: the mean error of stochastic rounding, else that of the nearest level.
    first_is_free: values below the first level are rounded up to it; else it is grid[0].
    """
    n = len(grid)
    # cost[i, j]: of the values between neighbouring levels grid[i] and grid[j].
    cost = np.full((n, n), np.inf)
    for i in range(n):
        for j in range(i + 1, n):
            x = grid[i : j + 1]
            up, down = grid[j] - x, x - grid[i]
            error = up * down if stochastic else np.minimum(up, down) ** 2
            cost[i, j] = (weight[i : j + 1] * error).sum()
    start = np.full(n, np.inf)
    start[0] = 0.0
    if first_is_free:
        start = np.array([(weight[:i] * (grid[i] - grid[:i]) ** 2).sum() for i in range(n)])
    total, before = start, []
    for _ in range(count - 1):
        sums = total[:, None] + cost
        before.append(sums.argmin(0))
        total = sums.min(0)
    places = [n - 1]
    for choice in reversed(before):
        places.append(int(choice[places[-1]]))
    return grid[places[::-1]]


def samples():
    """Of real moments: |m| over its block's largest and the weight of its error; v over its rank-1
    scale, v over its block's largest, and the weight of their logarithms' errors."""
    parts = []
    beta2 = float(np.float32(0.999))
    for steps in STEPS:
        exact = None
        for grads in quantization_error.trajectory(0.999, SEED, steps):
            kept = [grad for grad in grads if grad.size > 4096]
            if exact is None:
                exact = quantization_error.Exact([grad.shape for grad in kept], 0.999)
            exact.step(kept)
        for m, v in zip(exact.m, exact.v):
            top = np.abs(m).reshape(-1, BLOCK).max(1).repeat(BLOCK).reshape(m.shape)
            v_top = v.reshape(-1, BLOCK).max(1).repeat(BLOCK).reshape(m.shape)
            rank1 = np.minimum(v.max(1, keepdims=True), v.max(0, keepdims=True))
            corrected = np.maximum(v / (1 - beta2**steps), 1e-20)
            # An error e of m moves the update by e / sqrt(v); one of log v moves it by a half of
            # it times m / sqrt(v).
            parts.append(
                (np.abs(m) / top, top**2 / corrected, v / rank1, v / v_top, m**2 / corrected)
            )
    return [np.concatenate([part[i].ravel() for part in parts]) for i in range(5)]


def tables():
    """Named tables: lists of levels."""
    m, m_weight, rank1, block, v_weight = samples()
    # Few coordinates with hardly any v would count for all others.
    m_weight = np.minimum(m_weight, np.quantile(m_weight, 0.999))
    grid = np.linspace(0, 1, GRID)
    edges = np.concatenate([[-1], (grid[1:] + grid[:-1]) / 2, [2]])
    weight = np.histogram(m, edges, weights=m_weight)[0]
    found = {
        f"m, {kind}, {count} levels from zero up": best_levels(grid, weight, count, stochastic)
        for kind, stochastic in (("nearest", False), ("stochastic", True))
        for count in (8, 9)
    }
    logs = np.linspace(-3, 0, GRID)
    edges = np.concatenate([[-99], (logs[1:] + logs[:-1]) / 2, [1]])
    for name, ratio in (("rank-1", rank1), ("blocks", block)):
        weight = np.histogram(np.log10(np.maximum(ratio, 1e-9)), edges, weights=v_weight)[0]
        for kind, stochastic in (("nearest", False), ("stochastic-log", True)):
            found[f"v, {name}, {kind}"] = 10 ** best_levels(logs, weight, 16, stochastic, True)
    return found


def run():
    """Prints the tables."""
    for name, levels in tables().items():
        print(f"{name}: {[float(f'{level:.4g}') for level in levels]}", flush=True)
