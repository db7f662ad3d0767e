"""What the untrained and the trained model of a run continue: part of the key of a training."""

PROMPTS = ("My fellow citizens,", "The state of our Union is", "The people of the United States")
