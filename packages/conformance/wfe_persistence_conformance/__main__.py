"""`python -m wfe_persistence_conformance`."""

from wfe_persistence_conformance.cli import main

main()
