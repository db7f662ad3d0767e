"""Malformed inputs: real files with bytes or fields changed, and what each is given to.

An input passes when it is taken, or refused by one `DailyTrainError` whose message is a sentence that names the file or
the setting; in bounded CPU time and memory. `python -m tests.malformed N` gives N inputs in all and prints a table.
"""
