"""``python -m fairbench``: the command line without the installed script."""

from fairbench.cli import main

if __name__ == "__main__":
    main()
