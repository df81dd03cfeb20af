"""Prints the lines of Markdown tables, for the scripts that print tables of results."""


def print_head(*cells: str) -> None:
    """The first two lines of a table."""
    print_line(*cells)
    print("|---" * len(cells) + "|")


def print_line(*cells: str) -> None:
    """One line of a table."""
    parts = [f" {cell} " if cell else " " for cell in cells]
    print(f"|{'|'.join(parts)}|")
