"""``python -m fairbench``: the command line without the installed script."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is still being imported is one line, too."""
    try:
        from fairbench.app.cli import main as run

        run()
    except KeyboardInterrupt:
        print("fairbench: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
