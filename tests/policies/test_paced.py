"""What `paced` makes of a promise: chunks worked out by hand, step by step."""

import msgspec
from test_rows import COST, Bench


def test_paced_cuts_chunks_so_that_the_step_keeps_the_tightest_tpot() -> None:
    bench = Bench("paced", budget=40, cost=COST)
    bench.submit(0, prompt=10, new=50, slo="tpot=32ms")
    bench.submit(1, prompt=100, new=5, slo="tpot=20ms")
    assert bench.step() == {0: 1, 1: 31 - 10 - 2}, "32 ms less a thirty-second, a step, a decode; 1 ms each"
    bench.submit(2, prompt=4, new=50, slo="tpot=25ms")
    for _ in range(5):
        assert bench.step().get(1, 0) <= 19


def test_paced_gives_prompts_their_least_and_is_fcfs_without_a_promise() -> None:
    hard = Bench("paced", budget=48, cost=COST)
    hard.submit(0, prompt=10, new=50, slo="tpot=1ms")
    hard.submit(1, prompt=100, new=5)
    assert hard.step() == {0: 1, 1: 48 // 16}
    for free in (Bench("paced", budget=48, cost=COST), Bench("paced", budget=48)):
        free.submit(0, prompt=10, new=50, slo="" if free.instance.predictor else "tpot=1ms")
        free.submit(1, prompt=100, new=5)
        assert free.step() == {0: 1, 1: 47}


def test_paced_follows_what_steps_really_take() -> None:
    """The cost says half of the truth: corrected, chunks shrink; uncorrected, they do not."""
    chunks = {}
    for correct in (True, False):
        bench = Bench("paced", pages=200, budget=100, cost=COST)
        assert bench.instance.predictor is not None
        bench.instance.predictor.corrected = correct
        bench.submit(0, prompt=10, new=90, slo="tpot=64ms")
        bench.submit(1, prompt=400, new=5)
        chunks[correct] = [bench.step(took=2.0)[1] for _ in range(5)]
    assert chunks[False] == [62 - 10 - 2] * 5
    assert chunks[True][1:] == [31 - 10 - 2] * 4


def test_prompts_share_a_step_and_its_budget_is_never_passed() -> None:
    bench = Bench("paced", budget=40, cost=COST)
    bench.submit(0, prompt=10, new=50, slo="tpot=32ms")
    bench.submit(1, prompt=8, new=5)
    bench.submit(2, prompt=100, new=5)
    assert bench.step() == {0: 1, 1: 8, 2: 19 - 8}, "two prompts share what the promise allows"
    tight = Bench("paced", budget=4, cost=COST)
    for job in range(4):
        tight.submit(job, prompt=2, new=50, slo="tpot=1ms")
        tight.step()
    tight.submit(4, prompt=100, new=5)
    assert sum(tight.step().values()) == 4, "decoding takes all positions there are"


def test_a_context_already_there_makes_the_next_chunk_shorter() -> None:
    """Each position costs 1 us for each that it sees: a chunk that starts late in its prompt has fewer positions."""
    cost = msgspec.structs.replace(COST, prompt_context=1e3)
    bench = Bench("paced", pages=2000, budget=4000, cost=cost)
    bench.submit(0, prompt=4, new=90, slo="tpot=320ms")
    bench.submit(1, prompt=3000, new=5)
    chunks = [bench.step()[1] for _ in range(5)]
    assert chunks == sorted(chunks, reverse=True)
    assert chunks[-1] < chunks[0]
