"""What a training will need: memory, time and money, before it starts. Nothing here decides what a training writes.

It imports all other rooms of `model/`.
"""
