"""`python -P -m aggregator` is the `crossmargin` command.

Without `-P` a folder `models/` or `adapters/` in the current directory would be imported in place of ours.
"""

from .cli import main

if __name__ == "__main__":
    main()
