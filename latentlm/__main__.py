"""`python -m latentlm`: the command line."""

from .cli import main

main()
