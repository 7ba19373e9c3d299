"""What GPUs can do at most, from their data sheets. What kernels reach of it is in `kernels`."""

import msgspec

#: GPUs that one another's fast links reach.
NODE_GPUS = 8


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU; rates a second."""

    name: str
    #: What the driver offers programs, a little less than the GPU is sold with.
    memory_bytes: int
    bandwidth: float
    #: Dense, bfloat16.
    flops: float
    #: Bytes one way, to other GPUs of the node and to those of other nodes.
    link: float
    inter_node_link: float
    #: The GPU whose measured utilisations apply, for want of its own.
    kernels: str

    def peer_link(self, gpus: int) -> float:
        """Bytes a second one way between members of a group of so many GPUs, placed on as few nodes as hold them."""
        return self.link if gpus <= NODE_GPUS else self.inter_node_link


def _gib(size: float) -> int:
    return int(size * 2**30)


#: Bandwidth, FLOP/s and NVLink (half of the two-way figure) from NVIDIA's data sheets "H200 Tensor Core GPU", "H100
#: Tensor Core GPU" (SXM), "A100 Tensor Core GPU" (SXM, 80 GB), "A800 Tensor Core GPU" (an A100 with 400 GB/s of NVLink,
#: two-way) and "A10 Tensor Core GPU" (PCIe gen 4 for a link). Between nodes, one 400 Gb/s port a GPU beside an H100 or
#: H200 and one 200 Gb/s port beside an A100, as in NVIDIA's DGX machines; 64 Gb/s shared by the four GPUs of an A10
#: machine, as in the evaluation of Llumnix (OSDI'24). Memory is no data-sheet figure: docs/cost-composed.md.
HARDWARE = {
    hardware.name: hardware
    for hardware in (
        Hardware(
            name="h200", memory_bytes=_gib(139.8), bandwidth=4.8e12, flops=989e12, link=450e9, inter_node_link=50e9,
            kernels="h200",
        ),
        Hardware(
            name="h100", memory_bytes=_gib(79.1), bandwidth=3.35e12, flops=989e12, link=450e9, inter_node_link=50e9,
            kernels="h100",
        ),
        Hardware(
            name="a100", memory_bytes=_gib(79.15), bandwidth=2.039e12, flops=312e12, link=300e9, inter_node_link=25e9,
            kernels="a100",
        ),
        Hardware(
            name="a800", memory_bytes=_gib(79.15), bandwidth=2.039e12, flops=312e12, link=200e9, inter_node_link=25e9,
            kernels="a100",
        ),
        Hardware(
            name="a10", memory_bytes=_gib(22.0), bandwidth=600e9, flops=125e12, link=32e9, inter_node_link=2e9,
            kernels="a100",
        ),
    )
}  # fmt: skip


def named(name: str) -> Hardware:
    """A GPU by name. Raises ValueError, listing the names."""
    if name not in HARDWARE:
        raise ValueError(f"no hardware {name!r}: it is one of {', '.join(HARDWARE)}")
    return HARDWARE[name]
