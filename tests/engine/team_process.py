"""An instance of two ranks in a process of its own, for tests that kill: `python team_process.py FOLDER idle|busy`.

Prints the process id of the other rank once it is ready; then it waits, or runs steps for ever.
"""

import sys
import threading
from pathlib import Path

import tiny


def main() -> None:
    engine = tiny.engine(Path(sys.argv[1]), tensor_parallel_size=2)
    print(engine._backend._ranks.pids[0], flush=True)
    if sys.argv[2] == "idle":
        threading.Event().wait(300)
    driver = tiny.Driver(engine)
    while True:
        driver.add(0, [5, 6, 7], tiny.greedy(200))
        driver.finish_all()
        driver.finish.clear()


if __name__ == "__main__":
    main()
