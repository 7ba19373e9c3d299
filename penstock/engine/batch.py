"""Turns pieces of jobs into one flattened step. Integers in, integers out: no model, no sampling."""

from dataclasses import dataclass

import numpy as np

from penstock.engine.backend import Int32, Int64, Step


@dataclass(slots=True)
class Piece:
    """New positions of one job."""

    #: int64: the tokens of positions start, start + 1, ...
    ids: Int64
    start: int
    #: The job's row in the pool's tables.
    row: int
    #: Which of its rows' logits are wanted, ascending; most often the last or none.
    emit: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        return self.start + len(self.ids)


def build(pieces: list[Piece], tables: Int32, page_tokens: int) -> Step:
    """The step of these pieces, which stand as a step wants them: those of one position first."""
    counts = np.array([len(p.ids) for p in pieces], np.int32)
    query_start = np.zeros(len(pieces) + 1, np.int32)
    np.cumsum(counts, out=query_start[1:])
    contexts = np.array([p.end for p in pieces], np.int32)
    rows = np.array([p.row for p in pieces], np.int64)
    positions = np.arange(query_start[-1]) + np.repeat(contexts - query_start[1:], counts)
    pages = tables[np.repeat(rows, counts), positions // page_tokens].astype(np.int64)
    return Step(
        ids=np.concatenate([p.ids for p in pieces]),
        positions=positions,
        slots=pages * page_tokens + positions % page_tokens,
        query_start=query_start,
        contexts=contexts,
        tables=tables[rows, : -(-int(contexts.max()) // page_tokens)],
        decodes=int((counts == 1).sum()),
        emit=np.array([int(at) + row for p, at in zip(pieces, query_start, strict=False) for row in p.emit], np.int64),
    )
