"""What a person sees of a command in a terminal: the table of a run while it goes on (`live_table.py`, `run_state.py`,
`run_log.py`), its summary at the end (`summary.py`), and the line of a command that was stopped (`stop_line.py`)."""
