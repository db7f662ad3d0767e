"""The command `daily-train`: `commands.py` holds its subcommands, `entry_point.py` the process that answers to
signals."""
