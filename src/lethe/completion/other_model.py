"""Reads the Z of another model for the methods that use it beside the model's own."""

from pathlib import Path

from lethe.errors import LetheError
from lethe.matrix.forgetting_matrix import Matrix, read_matrix


def read_other_model(path: Path, z: Matrix, *, role: str, rule: str) -> Matrix:
    """Reads another model's Z, with all its tasks and with its examples in the order of `z`.

    Parameters
    ----------
    role
        The role of the other model, for the message: `a sibling` or `a prior`.
    rule
        What the role needs of its tasks, for the message.

    Raises
    ------
    LetheError
        If the file is no Z, lacks some of the examples, or has none of the tasks.
    """
    other = read_matrix(path)
    columns = {example_id: column for column, example_id in enumerate(other.example_ids)}
    missing = [example_id for example_id in z.example_ids if example_id not in columns]
    if missing:
        raise LetheError(
            f"{path}: lacks {len(missing)} of the {len(z.example_ids)} upstream examples, such as "
            f"{missing[0]!r}; {role} must be scored on the same examples"
        )
    if not set(other.tasks) & set(z.tasks):
        raise LetheError(
            f"{path}: has none of the {len(z.tasks)} tasks, such as {z.tasks[0]!r}; its tasks are "
            f"{', '.join(other.tasks[:5])}...; {role} {rule}"
        )
    index = [columns[example_id] for example_id in z.example_ids]
    return Matrix(values=other.values[:, index], tasks=other.tasks, example_ids=list(z.example_ids))
