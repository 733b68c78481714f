"""Builds the wheel with a library in it, installs it into a new environment and takes a step there:
`wheel.py LIBRARY FOLDER`. What else a step needs is seen from the environment that runs this."""

import pathlib
import shutil
import subprocess
import sys
import sysconfig
import venv

PACKAGE = pathlib.Path(__file__).resolve().parents[1]

STEP = """
import os, pathlib
import jax, jax.numpy as jnp
import lowbit, lowbit.jax
assert "LOWBIT_LIBRARY" not in os.environ
assert lowbit.library_path().parent == pathlib.Path(lowbit.__file__).parent
assert str(lowbit.library_path()).startswith(PREFIX), lowbit.library_path()
params = {"w": jnp.ones((128, 128))}
optimizer = lowbit.jax.adamw(1e-3)
params, state = optimizer.apply(params, optimizer.init(params), params)
assert int(state.count) == 1 and float(params["w"][0, 0]) < 1
print(f"lowbit {lowbit.version()} from {lowbit.library_path().name} takes a step")
"""


def main(library, folder):
    folder = pathlib.Path(folder).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    source = folder / "source"
    ignore = shutil.ignore_patterns("tests", "build", "*.egg-info", "__pycache__", "*.so")
    shutil.copytree(PACKAGE, source, ignore=ignore)
    brought = source / "lowbit" / "liblowbit.so"
    shutil.copy(library, brought)
    subprocess.run(["strip", "--strip-debug", brought], check=True)
    pip = [sys.executable, "-I", "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = folder.glob("*.whl")
    print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB")
    assert wheel.name.startswith("lowbit-") and "-py3-none-linux" in wheel.name, wheel

    prefix = folder / "venv"
    venv.create(prefix, with_pip=False)
    python = prefix / "bin" / "python"
    target = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    install = ["install", "--no-deps", "--no-index", "--target", target, wheel]
    subprocess.run([*pip, *install], check=True)
    (pathlib.Path(target) / "jax.pth").write_text(sysconfig.get_path("purelib") + "\n")
    # Neither a path nor a variable may lead back into the source tree.
    environment = {"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"}
    code = f"PREFIX = {str(prefix.resolve())!r}\n{STEP}"
    subprocess.run([python, "-c", code], check=True, env=environment, cwd=folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
