"""The experiments, one command each. `cargo xtask experiment` sets up what they need and runs this.

    run.py e1 screen              short runs of many arms
    run.py e1 screen --part 0/2   every second one of them; another process does the others

What is on file in results/ is not run again: a command that was stopped goes on where it was.
"""

import argparse
import os

# One thread for each process, before NumPy and XLA start theirs: the same bits on every machine,
# and no threads that wait for each other. Two parts of the runs keep two cores busy; on a GPU a
# dozen parts share its memory.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("NPROC", "1")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# In f32, where a device has shorter numbers for matrix products.
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
# What XLA would try out, it would try for each run; without that, products are better cuBLAS's than its own.
os.environ.setdefault("XLA_FLAGS", "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false")

import convex
import fine_tune
import fit
import images
import language_model
import memory
import miniature
import quantization_error
import records


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name, text, function, **defaults):
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(function=function, **defaults)
        added.add_argument("--part", default="0/1", help="a part of the runs, from 0: 0/2, 1/2")
        added.add_argument("--results", help="the folder of results; by default results/ here")
        if "seeds" in defaults:
            added.add_argument("--seeds", type=int, help=f"default: {defaults['seeds']}")
        return added

    def of_arms(command, group):
        command.add_argument("group", choices=group)
        command.add_argument("--arms", nargs="+", help="these alone; by default the group's")

    e1 = command("e1", "language model on real text", language_model.compare, seeds=3)
    of_arms(e1, tuple(language_model.GROUPS))
    command("e2", "fine-tuning MiniLM on WordNet", fine_tune.compare, seeds=5)
    e3 = command("e3", "digits and glyphs", images.compare, seeds=10)
    of_arms(e3, tuple(images.CASES))
    command("e4", "zero-point ablation", language_model.zero_point, seeds=3)
    command("e5", "quantization error on real moments", quantization_error.compare_all)
    command("e6", "LLaMA-7B's state in memory; takes 8 GB", memory.measure)
    command("e7", "quantized SGDM on a convex problem", convex.compare, seeds=10)
    commands.add_parser("report", help="RESULTS.md and plots from what is on file")
    commands.add_parser("fit", help="tables of levels for real moments")
    commands.add_parser("miniature", help="of e4 and e5, for continuous integration")

    arguments = vars(parser.parse_args())
    name = arguments.pop("command")
    if name == "report":
        import report

        report.write()
        return
    if name in ("fit", "miniature"):
        {"fit": fit, "miniature": miniature}[name].run()
        return
    store = records.Records(name, arguments.pop("results"))
    part, parts = map(int, arguments.pop("part").split("/"))
    arguments.pop("function")(store, part=part, parts=parts, **arguments)


if __name__ == "__main__":
    main()
