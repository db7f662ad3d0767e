"""The flows: `daily.py` is the table of contents of a run. `config.py` composes presets and changes."""
