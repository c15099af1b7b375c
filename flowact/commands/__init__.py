"""One verb of `flowact` per file: `add_arguments(parser)` says what it takes, `run(args)` does it and returns the exit code."""
