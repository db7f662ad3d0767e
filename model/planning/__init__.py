"""What a training will need: memory, time and money, before it starts. Nothing here decides what a training writes, but
for the size of a micro-batch, which changes rounding.

It imports all other folders of `model/`.
"""
