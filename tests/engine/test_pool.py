"""Pages are conserved, and each belongs to one owner, after any sequence of verbs."""

import itertools
import random

import pytest

from penstock.engine.backend import NULL_PAGE
from penstock.engine.pool import Pool, PoolError, Table


def check(pool: Pool, live: dict[int, Table]) -> None:
    """Every page is free, in one block, or one job's own; users are counted; rows are padded with the null page."""
    shared = [page for block in pool.blocks.values() for page in block.pages]
    own = []
    for table in live.values():
        row = pool.tables[table.row].tolist()
        start = len(table.keys) * pool.block_pages
        assert row[:start] == [page for key in table.keys for page in pool.blocks[key].pages]
        assert row[table.count :] == [NULL_PAGE] * (len(row) - table.count)
        own += row[start : table.count]
    assert sorted(pool.free + shared + own) == list(range(1, pool.pages + 1))
    for key, block in pool.blocks.items():
        assert block.users == sum(key in table.keys for table in live.values())


@pytest.mark.parametrize("seed", range(8))
def test_random_verbs(seed: int) -> None:
    draw = random.Random(seed)
    pool = Pool(60, page_tokens=4, block_tokens=8, max_len=64)
    live: dict[int, Table] = {}
    for job in range(400):
        verb = draw.choice(["bind", "bind", "grow", "share", "share", "release", "evict"])
        table = draw.choice(list(live.values())) if live else None
        if verb == "bind" and len(live) < 20:
            chain = itertools.takewhile(pool.blocks.__contains__, range(100, 100 + draw.randrange(5)))
            live[job] = pool.bind(chain)
        elif verb == "grow" and table:
            room = min(64, (table.count + len(pool.free)) * 4)
            pool.grow(table, draw.randint(0, room))
        elif verb == "share" and table and (len(table.keys) + 1) * 2 <= table.count and len(table.keys) < 4:
            pool.share(table, 100 + len(table.keys))
        elif verb == "release" and live:
            pool.release(live.pop(draw.choice(list(live))))
        elif verb == "evict":
            for key in [key for key, block in pool.blocks.items() if not block.users][:1]:
                pool.evict(key)
        check(pool, live)
    for table in live.values():
        pool.release(table)
    for key in list(pool.blocks):
        pool.evict(key)
    assert pool.used() == 0


def test_rows_grow_with_the_jobs() -> None:
    pool = Pool(100, page_tokens=4, block_tokens=8, max_len=16)
    live = {job: pool.bind(()) for job in range(40)}
    for table in live.values():
        pool.grow(table, 5)
    check(pool, live)
    assert len({table.row for table in live.values()}) == 40


def test_disagreement_with_the_core_is_told() -> None:
    pool = Pool(4, page_tokens=4, block_tokens=8, max_len=64)
    table = pool.bind(())
    with pytest.raises(PoolError, match="5 pages needed, 4 of 4 free"):
        pool.grow(table, 17)
    with pytest.raises(PoolError, match="block 7 is not complete"):
        pool.share(table, 7)
    with pytest.raises(PoolError, match="block 9 is not in the pool"):
        pool.bind((9,))
    pool.grow(table, 8)
    pool.share(table, 7)
    with pytest.raises(PoolError, match="block 7 has 1 users"):
        pool.evict(7)
