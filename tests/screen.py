"""What a terminal shows of the bytes that a program has written: lines, cursor and erasing, as rich uses them."""

import re

PART = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|\x1b.|([\r\n\x07])|([^\x1b\r\n\x07])", re.DOTALL)


def lines_on_screen(written: str, width: int) -> list[str]:
    """The lines of a terminal of so many columns, those that have left it at the top among them."""
    lines: list[list[str]] = [[]]
    row = column = 0
    for part in PART.finditer(written):
        numbers, command, control, letter = part.groups()
        if letter:
            if column == width:
                row, column = row + 1, 0
            while len(lines) <= row:
                lines.append([])
            lines[row] += [" "] * (column + 1 - len(lines[row]))
            lines[row][column] = letter
            column += 1
        elif control == "\n":
            row, column = row + 1, 0
            if len(lines) <= row:
                lines.append([])
        elif control == "\r":
            column = 0
        elif command == "A":
            row = max(0, row - int(numbers or 1))
        elif command == "K" and numbers == "2":
            lines[row] = []
        elif command and command not in "mhl":
            raise ValueError(f"this terminal does not know {part[0]!r}")
    return ["".join(line).rstrip() for line in lines]
