"""Run ``python -m fairtune``."""

from fairtune.cli import main

main()
