"""The experiments, one command each. `cargo xtask experiment` sets up what they need and runs this.

    run.py e1 screen            # short runs of many arms
    run.py e1 screen --part 0/2 # every second one of them; another process does the others

What is on file in results/ is not run again.
"""

import argparse

import images
import language_model
import quantization_error
import records


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", choices=("e1", "e3", "e4", "e5"))
    parser.add_argument("group", choices=("screen", "all", "glyphs", "digits"))
    parser.add_argument("--part", default="0/1", help="which part of the runs, from 0: 0/2, 1/2")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--results", help="the folder of results, if not results/ beside this file")
    arguments = parser.parse_args()
    part, parts = map(int, arguments.part.split("/"))
    store = records.Records(arguments.experiment, arguments.results)
    if arguments.experiment == "e1":
        language_model.screen(store, part, parts)
    if arguments.experiment == "e3":
        images.compare(store, arguments.group, arguments.seeds, part, parts)
    if arguments.experiment == "e4":
        language_model.zero_point(store, arguments.seeds, part, parts)
    if arguments.experiment == "e5":
        for beta2 in (0.999, 0.95):
            quantization_error.run(store, beta2)


if __name__ == "__main__":
    main()
