"""Before anything imports Triton (transformers does): its kernels run in the interpreter where there is no GPU."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
