"""The ``omnimri`` command: one module for each group of commands, wired together in :mod:`flows.cli.main`."""
