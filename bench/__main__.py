"""``python -m fairbench``: the command line without the installed script."""

import sys


def main() -> None:
    """Run the command line; an interruption while it is still being imported is one line, too."""
    try:
        from fairbench.core.interrupts import listen, no_more

        try:
            listen()
            from fairbench.app.cli import main as run

            run()
        finally:
            no_more()
    except KeyboardInterrupt:
        print("fairbench: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
