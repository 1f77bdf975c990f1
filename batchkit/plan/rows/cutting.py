"""The rows of a batch put into columns: stacked where they are alike, filled up, or by a user's function."""

from __future__ import annotations

from batchkit import stages as st
from batchkit.padding import padded_columns, padded_rows
from batchkit.plan.rows.calls import Call, Rows, collated
from batchkit.sources.stacking import Lease, stack_rows

__all__ = ["cut_rows"]


def cut_rows(stage: st.Batch, rows: Rows, after: str, lease: Lease, number: int = 0) -> Rows:
    """Return the rows of a batch as columns.

    ``after`` names the function that the rows come from, and ``number`` is the stage's own, for messages; ``lease``
    says where columns are written to.

    Raises:
        SchemaError: rows differ in what the stage does not even out; names the rows, the leaf and the mend.
        StageError: the stage's function failed; names the stage and the rows.
    """
    if stage.collate is not None:
        return collated(Call(stage, number), rows)
    if isinstance(stage, st.PaddedBatch):
        if rows.items is None:
            columns = padded_columns(stage, rows.columns, rows.ids, after, lease)
        else:
            columns = padded_rows(stage, rows.items, rows.ids, after, lease)
    elif rows.items is not None:
        columns = stack_rows(rows.items, rows.ids, after, lease)
    else:
        return rows
    return Rows(rows.ids, rows.epochs, columns, subs=rows.subs, origins=rows.origins)
