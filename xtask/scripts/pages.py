#!/usr/bin/env python3
"""Writes the index of `cargo xtask docs` and the repository's pages as HTML.

    pages.py ROOT OUT

Links between pages become links between what is written; those to sources become plain text.
"""

import html
import pathlib
import re
import sys

import markdown2

#: What is read in which order: file and title.
PAGES = [
    ("README.md", "lowbit"),
    ("include/README.md", "C: rules of the interface"),
    ("bindings/cpp/README.md", "C++"),
    ("bindings/python/README.md", "Python"),
    ("bindings/python/jax.md", "JAX"),
    ("bindings/python/torch.md", "PyTorch"),
    ("bindings/julia/README.md", "Julia"),
    ("include/PRESETS.md", "Which preset when"),
    ("include/SPEC.md", "Specs: what is kept how"),
    ("include/CHECKPOINT.md", "The checkpoint format"),
    ("CHANGELOG.md", "Changelog"),
]
#: References made from docstrings, in folders of OUT.
REFERENCES = [
    ("c/index.html", "C and C++: lowbit.h and lowbit.hpp"),
    ("python/index.html", "Python: lowbit, lowbit.jax, lowbit.torch, lowbit.convert"),
    ("julia.html", "Julia: Lowbit"),
    ("rust/lowbit/index.html", "Rust: the library's own crate"),
]
STYLE = """
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 sans-serif; }
pre { background: #f4f4f4; padding: .7rem; overflow-x: auto; } code { font-size: .9em; }
table { border-collapse: collapse; } td, th { border: 1px solid #ccc; padding: .2rem .6rem; }
"""


def page(title, body):
    return (
        f'<!DOCTYPE html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style>\n<body>\n{body}\n</body></html>\n"
    )


def name_of(source):
    return source.removesuffix(".md").replace("/", "-").lower() + ".html"


def render(root, source):
    """A page's HTML. Raises ValueError if it links to a file that does not exist."""
    text = (root / source).read_text(encoding="utf-8")
    body = markdown2.markdown(text, extras=["fenced-code-blocks", "tables"])
    written = {name for name, _ in PAGES}

    def link(match):
        target, label = match[1], match[2]
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        path, _, fragment = target.partition("#")
        file = (root / source).parent.joinpath(path).resolve()
        if not file.exists():
            raise ValueError(f"{source} links to {target}, which does not exist")
        inside = file.relative_to(root.resolve()).as_posix()
        return f'<a href="{name_of(inside)}">{label}</a>' if inside in written else label

    body = re.sub(r'<a href="([^"]*)">(.*?)</a>', link, body, flags=re.DOTALL)
    # Pictures lie where their page expects them in the repository, not here.
    return re.sub(r'<p><img [^>]*alt="([^"]*)"[^>]*></p>', r"<p><em>\1</em></p>", body)


def main():
    root, out = map(pathlib.Path, sys.argv[1:])
    for source, title in PAGES:
        (out / name_of(source)).write_text(page(title, render(root, source)), encoding="utf-8")
    lists = [("Pages", [(name_of(source), title) for source, title in PAGES])]
    lists.append(("References", REFERENCES))
    body = "<h1>lowbit</h1>"
    for heading, entries in lists:
        for target, _ in entries:
            if not (out / target).is_file():
                raise ValueError(f"{target} was not written")
        items = "\n".join(f'<li><a href="{target}">{title}</a></li>' for target, title in entries)
        body += f"\n<h2>{heading}</h2>\n<ul>\n{items}\n</ul>"
    (out / "index.html").write_text(page("lowbit", body), encoding="utf-8")


if __name__ == "__main__":
    main()
