"""Physical KV pages: which job and which shared block has which. Integers only; the tensors are the runner's.

The core decides by numbers alone (so many pages, this block by that name); here each number becomes a page.
Page 0 belongs to nobody (see `backend.NULL_PAGE`), so a pool of n pages has tensors of n + 1.

    blocks  key -> its pages, and how many jobs use it
    job     a row of `tables`: first the pages of the blocks that it shares, then its own, then zeros
"""

from collections.abc import Iterable

import numpy as np

from penstock.engine.backend import NULL_PAGE, Int32


class PoolError(RuntimeError):
    """The core's accounting and the pool's disagree."""


class Block:
    """A shared block of full pages."""

    __slots__ = ("pages", "users")

    def __init__(self, pages: list[int], users: int) -> None:
        self.pages = pages
        self.users = users


class Table:
    """The pages of one job: a row of the pool's tables."""

    __slots__ = ("count", "keys", "row")

    def __init__(self, row: int) -> None:
        self.row = row
        #: Pages in the row.
        self.count = 0
        #: The shared blocks at the start of the row.
        self.keys: list[int] = []


class Pool:
    """`pages` pages of `page_tokens` positions, for jobs of at most `max_len` positions."""

    def __init__(self, pages: int, page_tokens: int, block_tokens: int, max_len: int) -> None:
        self.pages = pages
        self.page_tokens = page_tokens
        self.block_pages = block_tokens // page_tokens
        #: Free pages; the last is taken next, so that few pages are touched while few are used.
        self.free = list(range(pages, NULL_PAGE, -1))
        self.blocks: dict[int, Block] = {}
        #: int32 [rows, most pages of a job]; rows of jobs that hold nothing are zero.
        self.tables: Int32 = np.zeros((16, -(-max_len // page_tokens)), np.int32)
        self._rows = list(range(15, -1, -1))

    def used(self) -> int:
        return self.pages - len(self.free)

    def bind(self, keys: Iterable[int]) -> Table:
        """A table for a job that starts with these shared blocks."""
        table = Table(self._take_row())
        for key in keys:
            block = self.blocks.get(key)
            if block is None:
                raise PoolError(f"shared block {key} is not in the pool")
            block.users += 1
            table.keys.append(key)
            self._append(table, block.pages)
        return table

    def grow(self, table: Table, positions: int) -> None:
        """Give the job pages of its own until it has room for so many positions."""
        need = -(-positions // self.page_tokens) - table.count
        if need > len(self.free):
            raise PoolError(f"{need} pages needed, {len(self.free)} of {self.pages} free")
        if need > 0:
            self._append(table, [self.free.pop() for _ in range(need)])

    def pages_of(self, table: Table, positions: int) -> list[int]:
        """Pages of the first so many positions, in order; fewer if there are fewer."""
        row = self.tables[table.row]
        pages: list[int] = row[: min(table.count, -(-positions // self.page_tokens))].tolist()
        return pages

    def share(self, table: Table, key: int) -> None:
        """The job's first block that is its own becomes block `key`, or gives way to the one there is."""
        start = len(table.keys) * self.block_pages
        row = self.tables[table.row, start : start + self.block_pages]
        if start + self.block_pages > table.count:
            raise PoolError(f"block {key} is not complete: {table.count} pages, {start + self.block_pages} needed")
        own = row.tolist()
        block = self.blocks.setdefault(key, Block(own, 0))
        block.users += 1
        table.keys.append(key)
        if block.pages is not own:
            row[:] = block.pages
            self.free.extend(own)

    def evict(self, key: int) -> None:
        block = self.blocks[key]
        if block.users:
            raise PoolError(f"shared block {key} has {block.users} users")
        del self.blocks[key]
        self.free.extend(block.pages)

    def release(self, table: Table) -> None:
        """The job's own pages are free, and it uses no block any more. The table is void."""
        for key in table.keys:
            self.blocks[key].users -= 1
        row = self.tables[table.row]
        self.free.extend(row[len(table.keys) * self.block_pages : table.count].tolist())
        row[: table.count] = NULL_PAGE
        self._rows.append(table.row)

    def _append(self, table: Table, pages: list[int]) -> None:
        self.tables[table.row, table.count : table.count + len(pages)] = pages
        table.count += len(pages)

    def _take_row(self) -> int:
        if not self._rows:
            rows = len(self.tables)
            self._rows.extend(range(2 * rows - 1, rows - 1, -1))
            self.tables = np.concatenate([self.tables, np.zeros_like(self.tables)])
        return self._rows.pop()
