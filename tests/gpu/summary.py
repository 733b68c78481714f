"""Merges the parts' files: summary.py FOLDER PART... writes FOLDER/results.json and prints a table.

The parts are those that were just run; one without a file has crashed. Other parts' files in the
folder, of earlier runs, are merged as well if they are of the same library.
"""

import json
import pathlib
import sys

from report import library

COLUMNS = (
    ("milliseconds", "ms", ".3f"),
    ("ns_per_param", "ns/param", ".4f"),
    ("bytes_per_param", "B/param", ".3f"),
    ("gb_per_s", "GB/s", ".0f"),
    ("bytes_ms", "bytes ms", ".3f"),
    ("issue_ms", "issue ms", ".3f"),
    ("times_the_floor", "x floor", ".3f"),
    ("ratio", "ratio", ".3f"),
    ("first_us", "first us", ".1f"),
    ("host_us", "host us", ".1f"),
    ("done_us", "done us", ".1f"),
    ("loss", "loss", ".4f"),
    ("peak_gb", "peak GB", ".3f"),
)


def main(folder, *ran):
    folder = pathlib.Path(folder)
    parts = {}
    for file in sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime):
        if file.name != "results.json":
            part = json.loads(file.read_text(encoding="utf-8"))
            if part.get("library") == library():
                parts[part["part"]] = part
    missing = [part for part in ran if part not in parts]
    passed = not missing and all(part["passed"] for part in parts.values())
    results = {"passed": passed, "missing": missing, "parts": parts}
    text = json.dumps(results, indent=2) + "\n"
    (folder / "results.json").write_text(text, encoding="utf-8")
    print(f"\n{table(parts, missing)}\n\nresults: {folder}")


def table(parts, missing):
    lines = []
    for name, part in parts.items():
        lines += [
            f"{'passed' if check['passed'] else 'FAILED'}  {name:16}{check['name']}: "
            f"{check['detail']}"
            for check in part["checks"]
        ]
    lines += [f"FAILED  {part:16}ended without a result" for part in missing]
    lines += [line for part in parts.values() for line in measured(part["measurements"])]
    checks = [check["passed"] for part in parts.values() for check in part["checks"]]
    failed = checks.count(False) + len(missing)
    return "\n".join([*lines, f"{checks.count(True)} passed, {failed} failed"])


def measured(rows):
    """The rows of a table, each value under the head of its column."""
    if not rows:
        return []
    width = max(len(row["name"]) for row in rows)
    lines = ["", " " * width + "".join(f"{head:>12}" for _, head, _ in COLUMNS)]
    for row in rows:
        cells = ("" if row.get(key) is None else format(row[key], form) for key, _, form in COLUMNS)
        lines.append(f"{row['name']:{width}}" + "".join(f"{cell:>12}" for cell in cells))
    return [*lines, ""]


if __name__ == "__main__":
    main(*sys.argv[1:])
