"""What several commands know of the server without starting it."""

PORT = 4200
"""Of the server's UI and API."""
NOTIFY = "DAILY_TRAIN_NOTIFY"
"""Environment variable with the address that messages about runs go to."""
