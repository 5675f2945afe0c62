"""The steps of a report that the Makefile chains: resolve the parameters, execute a notebook, render the pages.

`python -m lib.report resolve|execute|render …`; an error is one sentence on stderr. `alone` runs all of them, as one
command that no other may join.
"""

import argparse
import errno
import os
import sys
from pathlib import Path

from lib.base import params as parameters
from lib.base.errors import InputError, exit_on_input_error
from lib.base.files import locked
from lib.report.execute import NotebookError, execute
from lib.report.render import render
from lib.report.resolve import announcement, resolve


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lib.report", description=__doc__.splitlines()[0])
    steps = parser.add_subparsers(dest="step", required=True)
    step = steps.add_parser("resolve", help="check the parameters and write outputs/<run>/params.yaml")
    step.add_argument("--params", type=Path, required=True)
    step.add_argument("--run", required=True)
    step.add_argument("--seed")
    step.add_argument("--tokens")
    step = steps.add_parser("execute", help="run one notebook into outputs/<run>/notebooks")
    step.add_argument("notebook", type=Path)
    step.add_argument("params_file", type=Path)
    step = steps.add_parser("render", help="write outputs/<run>/report from the executed notebooks")
    step.add_argument("folder", type=Path)
    step = steps.add_parser("alone", help="run a command while no other one works on the run")
    step.add_argument("run")
    step.add_argument("command", nargs=argparse.REMAINDER)
    return parser


def alone(run: str, command: list[str]) -> None:
    """Becomes the command, which holds the run's lock until it and all that it starts have ended.

    A second `make report` would exchange parameters and tables under the first. The lock is outside the run's folder,
    which holds nothing until the parameters are checked.
    """
    busy = f"another `make report RUN={run}` is at work (process {{pid}}); wait until it ends, or stop it."
    with locked(parameters.OUTPUTS / parameters.CACHE / "locks", busy, run) as lock:
        os.set_inheritable(lock.fileno(), True)
        os.execvp(command[0], command)


@exit_on_input_error
def main(arguments: list[str] | None = None) -> int:
    """Command line; 0 on success, 2 for bad input, 1 for a notebook that fails."""
    given = _arguments().parse_args(arguments)
    try:
        if given.step == "resolve":
            file = parameters.parameter_file(given.params, given.run)
            params = resolve(file, given.run, given.seed, given.tokens)
            if line := announcement(params):
                print(f"{line} (parameters: {file})", flush=True)
        elif given.step == "execute":
            execute(given.notebook, given.params_file)
        elif given.step == "alone":
            alone(given.run, given.command)
        else:
            render(given.folder)
    except NotebookError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        where = f" of {error.filename}" if error.filename else ""
        raise InputError(f"no space left on the disk{where}; free some and run the same command again.") from error
    return 0


if __name__ == "__main__":
    sys.exit(main())
