"""Stands in for the CUDA libraries that PyPI's torch is linked with, so that it runs without them.

usage: torch_stubs.py FOLDER_OF_TORCH_LIBRARIES

torch looks none of their functions up before it has found a GPU, but the loader wants every library
and every symbol to exist. Each missing library becomes one whose functions only say that there is
none, a few kilobytes instead of 4 GB. Needs readelf, nm and a C compiler.
"""

import collections
import pathlib
import re
import subprocess
import sys
import tempfile

#: cudaErrorNoDevice, and what the functions return that name an error.
NO_DEVICE = 100
TEXT = "no CUDA-capable device is detected"


def read(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def needed(library):
    return re.findall(r"\(NEEDED\).*\[(.+)\]", read("readelf", "--dynamic", library))


def symbols(library, which):
    """The names of dynamic symbols, with their versions; weak references may stay unresolved."""
    lines = read("nm", "--dynamic", "--portability", "--with-symbol-versions", which, library)
    pairs = (line.split()[:2] for line in lines.splitlines())
    return {name for name, kind in pairs if kind not in "wv"}


def version_owners(library):
    """version -> the library that `library` expects it of"""
    owners, owner = {}, None
    for line in read("readelf", "--version-info", "--wide", library).splitlines():
        if found := re.search(r"Version: 1\s+File: (\S+)", line):
            owner = found[1]
        elif owner and (found := re.search(r"Name: (\S+)\s+Flags:", line)):
            owners[found[1]] = owner
    return owners


def function(symbol):
    if symbol.endswith(("ErrorString", "ErrorName")):
        return f'const char *{symbol}(void) {{ return "{TEXT}"; }}\n'
    return f"int {symbol}(void) {{ return {NO_DEVICE}; }}\n"


def build(name, versions, folder):
    """versions: version, or "" for none -> symbols"""
    names = sorted(set().union(*versions.values()))
    with tempfile.TemporaryDirectory() as scratch:
        source, script = pathlib.Path(scratch, "stub.c"), pathlib.Path(scratch, "stub.map")
        source.write_text("".join(map(function, names)))
        script.write_text(
            "".join(
                f"{version} {{ global: {' '.join(f'{s};' for s in sorted(members))} }};\n"
                for version, members in versions.items()
                if version and members
            )
        )
        command = ["cc", "-w", "-fno-builtin", "-shared", "-fPIC", "-o", str(folder / name)]
        command += [f"-Wl,-soname,{name}", str(source)]
        if script.stat().st_size:
            command.append(f"-Wl,--version-script,{script}")
        subprocess.run(command, check=True)


def main(folder):
    # torch opens libcaffe2_nvrtc only to compile for a GPU, and a stub of the driver that it needs
    # would pass for a driver.
    libraries = sorted(set(folder.glob("*.so*")) - {folder / "libcaffe2_nvrtc.so"})
    present = {library.name for library in libraries} | set(
        re.findall(r"^\s+(\S+) \(", read("ldconfig", "-p"), re.MULTILINE)
    )
    users = {
        library: missing
        for library in libraries
        if (missing := [name for name in needed(library) if name not in present])
    }
    defined = set().union(*(symbols(library, "--defined-only") for library in libraries))
    defined = {name.split("@")[0] for name in defined}
    stubs = {name: collections.defaultdict(set) for names in users.values() for name in names}
    for library, missing in users.items():
        owners = version_owners(library)
        for symbol in symbols(library, "--undefined-only"):
            name, _, version = symbol.partition("@")
            owner = owners.get(version.lstrip("@"))
            if owner in stubs:
                stubs[owner][version.lstrip("@")].add(name)
            elif not version and name not in defined:
                # The loader searches them all, so that any will do.
                stubs[missing[0]][""].add(name)
    for name, versions in stubs.items():
        build(name, versions, folder)
        print(f"{name}: {sum(map(len, versions.values()))} symbols")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
