"""`python -m wfe_persistence`."""

from wfe_persistence.cli import main

main(prog_name="wfe-persistence")
