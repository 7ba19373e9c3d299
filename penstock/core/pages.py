"""Who has how many of a pool's pages. Integers only: which physical page is which is the engine's affair.

A job's first positions may lie in *shared blocks* (prefix reuse): blocks of a fixed size with a name, an integer made
at the edge from all that the block's content depends on, what comes before it included, so that equal names mean equal
content. The rest of the job lies in pages of its own, which are counted, not listed. A block that no job uses stays
until its room is needed (see `Prefixes`).

Law: free + own pages of all jobs + shared blocks x pages per block == pages.
"""

from collections.abc import Sequence

from penstock.core.job import NEVER, Job
from penstock.core.prefix import Node, Prefixes


class Host:
    """The account of a pool in host memory, which no step can use: where preempted jobs may keep what they have."""

    def __init__(self, pages: int, page_tokens: int) -> None:
        self.pages = self.free = pages
        self._page_tokens = page_tokens

    def need(self, positions: int) -> int:
        """Pages for so many positions."""
        return -(-positions // self._page_tokens)

    def stow(self, job: Job) -> bool:
        """Keep what the job has executed, if there is anything, and room."""
        need = self.need(job.done)
        if not need or need > self.free:
            return False
        self.free -= need
        job.stowed = job.done
        return True

    def drop(self, job: Job) -> None:
        """What it keeps of the job, if anything, is no longer wanted."""
        self.free += self.need(job.stowed)
        job.stowed = 0


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
        self.prefixes = Prefixes()
        #: Blocks evicted since the driver was last told.
        self.evicted: list[int] = []

    @property
    def available(self) -> int:
        """Pages that could be had: free, or in blocks that nobody uses."""
        return self.free + self.prefixes.idle_blocks * self.block_pages

    @property
    def used(self) -> int:
        """Pages that jobs hold, shared ones counted once."""
        return self.pages - self.available

    def own(self, job: Job) -> int:
        """Pages that only this job has."""
        return (job.room - job.shared * self.block_tokens) // self.page_tokens

    def match(self, job: Job) -> tuple[int, int]:
        """How many of the job's leading blocks are here, and how many pages of those nobody uses. The last known
        position is never among them: executing it is what makes the job go on."""
        limit = min(len(job.keys), (job.known - 1) // self.block_tokens)
        blocks, idle = self.prefixes.match(job.keys, self.prefixes.root, 0, limit)
        return blocks, idle * self.block_pages

    def bind(self, job: Job, blocks: int) -> None:
        """The job, which has nothing, starts on its first `blocks` shared blocks."""
        job.node = self.prefixes.take(job.keys, self.prefixes.root, 0, blocks)
        job.shared = blocks
        job.done = job.planned = job.room = blocks * self.block_tokens
        self.name(job)

    def name(self, job: Job, keys: Sequence[int] = ()) -> None:
        """More of the job's blocks have names."""
        job.keys.extend(keys)
        job.share_at = (job.shared + 1) * self.block_tokens if job.shared < len(job.keys) else NEVER

    def missing(self, job: Job, upto: int) -> int:
        """Pages to be had before the job can keep positions up to `upto`."""
        return -(-(upto - job.room) // self.page_tokens) if upto > job.room else 0

    def grow(self, job: Job, pages: int) -> bool:
        """Give the job so many more pages, evicting what nobody uses; False, and nothing done, if there are too few."""
        if pages > self.free and not self._evict(pages - self.free):
            return False
        self.free -= pages
        job.room += pages * self.page_tokens
        return True

    def _evict(self, pages: int) -> bool:
        blocks = -(-pages // self.block_pages)
        if blocks > self.prefixes.idle_blocks:
            return False
        self.evicted += self.prefixes.evict(blocks)
        self.free += blocks * self.block_pages
        return True

    def sharing_is_new(self, job: Job) -> bool:
        """Whether the next block that the job will share is not here yet; then none after it is."""
        return job.shared >= len(job.keys) or job.keys[job.shared] not in self.at(job).children

    def at(self, job: Job) -> Node:
        """Where the job's path of shared blocks ends."""
        return job.node if job.node is not None else self.prefixes.root

    def share(self, job: Job) -> tuple[int, ...]:
        """Put all of the job's blocks that have a name, and are executed, into the tree; where one is there already,
        drop the copy. Their names."""
        keys, start = job.keys, job.shared
        upto = min(len(keys), job.done // self.block_tokens)
        node = self.at(job)
        here, _ = self.prefixes.match(keys, node, start, upto)
        if here > start:
            node = self.prefixes.take(keys, node, start, here)
            self.free += (here - start) * self.block_pages
        if upto > here:
            node = self.prefixes.add(keys[here:upto], node)
        job.node, job.shared = node, upto
        self.name(job)
        return tuple(keys[start:upto])

    def release(self, job: Job) -> None:
        """The job gives up all that it holds and stands at position 0."""
        self.free += self.own(job)
        if job.node is not None:
            self.prefixes.leave(job.node)
            job.node = None
        job.done = job.planned = job.room = job.shared = 0
        self.name(job)
