"""Who has how many of a pool's pages. Integers only: which physical page is which is the engine's affair.

A job's first positions may lie in *shared blocks* (prefix reuse): blocks of a fixed size with a name, an integer made
at the edge from all that the block's content depends on, so that equal names mean equal content. The rest of the job
lies in pages of its own, which are counted, not listed. A block that no job uses stays until its room is needed
(least recently used first; of one job, the deepest first, since a block is of no use without those before it).

Law: free + own pages of all jobs + shared blocks x pages per block == pages.
"""

from collections.abc import Sequence

from penstock.core.job import NEVER, Job


class Pages:
    """The account of one pool."""

    def __init__(self, pages: int, page_tokens: int, block_tokens: int) -> None:
        if block_tokens % page_tokens:
            raise ValueError(f"block_tokens ({block_tokens}) must be a multiple of page_tokens ({page_tokens})")
        self.pages = pages
        self.page_tokens = page_tokens
        self.block_tokens = block_tokens
        self.block_pages = block_tokens // page_tokens
        #: Pages that hold nothing.
        self.free = pages
        #: Shared block -> number of jobs that use it.
        self.users: dict[int, int] = {}
        #: Shared blocks without a user, the next to be evicted first.
        self.idle: dict[int, None] = {}
        #: Blocks evicted since the driver was last told.
        self.evicted: list[int] = []

    @property
    def available(self) -> int:
        """Pages that could be had: free, or in blocks that nobody uses."""
        return self.free + len(self.idle) * self.block_pages

    @property
    def used(self) -> int:
        """Pages that jobs hold, shared ones counted once."""
        return self.pages - self.available

    def own(self, job: Job) -> int:
        """Pages that only this job has."""
        return (job.room - job.shared * self.block_tokens) // self.page_tokens

    def match(self, job: Job) -> int:
        """How many of the job's leading blocks are here. The last known position is never among them: executing it is
        what makes the job go on."""
        limit = min(len(job.keys), (job.known - 1) // self.block_tokens)
        users, keys = self.users, job.keys
        return next((i for i in range(limit) if keys[i] not in users), limit)

    def bind(self, job: Job, blocks: int) -> None:
        """The job, which has nothing, starts on its first `blocks` shared blocks."""
        for key in job.keys[:blocks]:
            self.users[key] += 1
            self.idle.pop(key, None)
        job.shared = blocks
        job.done = job.planned = job.room = blocks * self.block_tokens
        self.name(job)

    def name(self, job: Job, keys: Sequence[int] = ()) -> None:
        """More of the job's blocks have names."""
        job.keys.extend(keys)
        job.share_at = (job.shared + 1) * self.block_tokens if job.shared < len(job.keys) else NEVER

    def missing(self, job: Job, upto: int) -> int:
        """Pages to be had before the job can keep positions up to `upto`."""
        return max(0, -(-(upto - job.room) // self.page_tokens))

    def grow(self, job: Job, pages: int) -> bool:
        """Give the job so many more pages, evicting what nobody uses; False, and nothing done, if there are too few."""
        if pages > self.free and not self._evict(pages - self.free):
            return False
        self.free -= pages
        job.room += pages * self.page_tokens
        return True

    def _evict(self, pages: int) -> bool:
        blocks = -(-pages // self.block_pages)
        if blocks > len(self.idle):
            return False
        for _ in range(blocks):
            key = next(iter(self.idle))
            del self.idle[key], self.users[key]
            self.evicted.append(key)
        self.free += blocks * self.block_pages
        return True

    def share(self, job: Job) -> int:
        """Put the job's next block, now executed, into the table; if it is there already, drop the copy. Its name."""
        key = job.keys[job.shared]
        if key in self.users:
            self.users[key] += 1
            self.idle.pop(key, None)
            self.free += self.block_pages
        else:
            self.users[key] = 1
        job.shared += 1
        self.name(job)
        return key

    def release(self, job: Job) -> None:
        """The job gives up all that it holds and stands at position 0."""
        self.free += self.own(job)
        for key in reversed(job.keys[: job.shared]):
            self.users[key] -= 1
            if not self.users[key]:
                self.idle[key] = None
        job.done = job.planned = job.room = job.shared = 0
        self.name(job)
