"""`python -m eva_fast` is `eva-fast`; torchrun starts it this way."""

from eva_fast.cli import main

main()
