"""The command `daily-train`: `arguments.py` holds its parser, `commands.py` its subcommands, `entry_point.py` the
process that answers to signals. May import everything of ours."""
