"""The contamination check: its speed beside peers, what it finds, and whether breaking it is noticed."""
