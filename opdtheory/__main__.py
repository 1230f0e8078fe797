"""``python -m opdtheory``."""

from opdtheory.cli import main

main()
