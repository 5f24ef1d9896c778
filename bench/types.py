"""What one look costs, by type of check: microseconds of CPU.  `kinds.py` does it."""

import sys

if __name__ == "types":
    # `python bench/cost.py` looks for modules in this folder first, and the standard library has
    # one of this name too, which is the one that is wanted.
    _folder = sys.path.pop(0)
    del sys.modules["types"]
    import types

    sys.modules["types"] = types
    sys.path.insert(0, _folder)
elif __name__ == "__main__":
    from kinds import main

    main()
