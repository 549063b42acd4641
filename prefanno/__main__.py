"""`python -m prefanno` is the command line."""

from prefanno.cli import main

main()
