"""The shared blocks of a pool, as a tree of runs: what prompts have in common is stored, and counted, once.

A block's name is made from all that comes before it (`JobSpec.keys`), so two jobs that have a block in common have all
before it in common, too: the blocks form a tree. Runs without a branch are one `Node`, so that a prompt of ten thousand
tokens costs as many operations as it has branches, not blocks (SGLang's RadixAttention has the same shape, over tokens;
Zheng et al., arXiv 2312.07104).

A node that no job uses is idle. The deepest goes first: whoever uses a node uses its parents, so a parent never becomes
idle before its children, and the order in which nodes became idle is an order in which they can be evicted.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence


class Node:
    """A run of blocks, one after the other, that the same jobs use."""

    __slots__ = ("children", "keys", "parent", "users")

    def __init__(self, keys: list[int], parent: "Node | None", users: int) -> None:
        self.keys = keys
        self.parent = parent
        #: Jobs that use it.
        self.users = users
        #: By the first key of each.
        self.children: dict[int, Node] = {}


class Prefixes:
    """The tree, and which of it is idle. Knows nothing of pages or positions."""

    def __init__(self) -> None:
        self.root = Node([], None, 1)
        #: Blocks in the tree.
        self.blocks = 0
        #: Nodes without a user, the next to be evicted first, and their blocks. Its ends are used up one after the
        #: other, which makes the first of a plain dict slow to find.
        self.idle: OrderedDict[Node, None] = OrderedDict()
        self.idle_blocks = 0

    def match(self, keys: Sequence[int], node: Node, at: int, limit: int) -> tuple[int, int]:
        """Up to which block, `limit` at most, a path that ends at `node`, before block `at`, goes on here; and how many
        blocks of that are idle."""
        idle = 0
        while at < limit and (child := node.children.get(keys[at])) is not None:
            common = _common(child.keys, keys, at, limit)
            at += common
            if not child.users:
                idle += common
            if common < len(child.keys):
                break
            node = child
        return at, idle

    def take(self, keys: Sequence[int], node: Node, at: int, upto: int) -> Node:
        """A job that uses the path to `node`, which ends before block `at`, now uses it up to block `upto`, all of
        which is here. Returns the node at which its path ends."""
        while at < upto:
            child = node.children[keys[at]]
            common = _common(child.keys, keys, at, upto)
            node = self._split(child, common) if common < len(child.keys) else child
            if not node.users:
                del self.idle[node]
                self.idle_blocks -= common
            node.users += 1
            at += common
        return node

    def add(self, keys: list[int], node: Node) -> Node:
        """The one job whose path ends at `node` puts these blocks, none of which is here, behind it."""
        self.blocks += len(keys)
        if node.users == 1 and not node.children and node.parent is not None:
            node.keys += keys
            return node
        child = Node(keys, node, 1)
        node.children[keys[0]] = child
        return child

    def leave(self, node: Node) -> None:
        """The job whose path ends at `node` is through with it."""
        while node.parent is not None:
            node.users -= 1
            if not node.users:
                self.idle[node] = None
                self.idle_blocks += len(node.keys)
            node = node.parent

    def evict(self, count: int) -> list[int]:
        """Drop so many idle blocks; their names, in the order in which they went. There must be that many."""
        self.idle_blocks -= count
        self.blocks -= count
        gone: list[int] = []
        while count:
            node = next(iter(self.idle))
            dropped = node.keys[: -count - 1 : -1]
            gone += dropped
            count -= len(dropped)
            if len(dropped) < len(node.keys):
                del node.keys[-len(dropped) :]
            else:
                del self.idle[node]
                assert node.parent is not None
                del node.parent.children[node.keys[0]]
        return gone

    def nodes(self) -> Iterator[Node]:
        """All but the root, parents first."""
        todo = list(self.root.children.values())
        while todo:
            node = todo.pop()
            yield node
            todo.extend(node.children.values())

    def _split(self, node: Node, at: int) -> Node:
        """Cut a node in two; the new one, which it returns, has the first `at` blocks. Jobs whose path ends at the node
        need not know. An idle head is the caller's to use at once: it has no place in the order of eviction."""
        parent = node.parent
        assert parent is not None
        head = Node(node.keys[:at], parent, node.users)
        parent.children[head.keys[0]] = head
        node.keys = node.keys[at:]
        node.parent = head
        head.children[node.keys[0]] = node
        if not node.users:
            self.idle[head] = None
        return head


def _common(ours: list[int], keys: Sequence[int], at: int, limit: int) -> int:
    """How many blocks `ours` and `keys[at:limit]` start with in common; at least the first, which the caller knows."""
    low, high = 1, min(len(ours), limit - at)
    if ours[high - 1] == keys[at + high - 1]:
        return high
    while low < high - 1:
        middle = (low + high) // 2
        if ours[middle - 1] == keys[at + middle - 1]:
            low = middle
        else:
            high = middle
    return low
