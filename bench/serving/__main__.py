"""`python -m bench.serving --model models/clp-full`: see `load`."""

import typer

from bench.serving.load import main

if __name__ == "__main__":
    typer.run(main)
