"""Ranks that share a model: what each has of it, what is refused, and how they end. Their tokens: test_families."""

import itertools
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
import tiny
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from penstock.engine import load
from penstock.engine.backend import ATTENTION, Kv
from penstock.engine.batch import Piece, build
from penstock.engine.cpu.backend import Cpu
from penstock.engine.cpu.layers import FusedLayer
from penstock.engine.load import Unsupported
from penstock.engine.options import EngineOptions
from penstock.engine.parallel.group import RankLost, Sockets
from penstock.engine.parallel.layers import Gathered, Reduced
from penstock.engine.parallel.messages import Forward, forward_of, step_of
from penstock.engine.parallel.plan import check_size, cuts
from penstock.engine.parallel.shard import shard, skeleton, stream
from penstock.engine.parallel.weights import Weights
from penstock.engine.probe import reference
from penstock.engine.transport.tensors import store_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("Llama", tmp_path_factory.mktemp("llama"))


class OneOf:
    """A rank's place, without the others."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        return x


def share(folder: Path, place: OneOf, dtype: str = "auto") -> torch.nn.Module:
    options = EngineOptions(model=str(folder), dtype=dtype)
    config = load.load_config(folder)
    model = skeleton(folder, config, options)
    shard(model, Weights(folder, config, options), place, torch.device("cpu"))  # type: ignore[arg-type]
    return model


# What each rank has


def test_shares_make_up_the_model(folder: Path) -> None:
    """Each rank has half of every matrix that is cut, and all of the rest."""
    whole = AutoModelForCausalLM.from_pretrained(folder)
    first, second = (dict(share(folder, OneOf(rank, 2)).named_parameters()) for rank in range(2))
    dims = {"colwise": 0, "rowwise": 1}
    cut = {f"{name}.weight": dims[how] for name, how in cuts(whole).items()} | {"lm_head.weight": 0}
    assert len(cut) == 2 * 7 + 1
    for name, weight in whole.named_parameters():
        inner = name if name in first else name.replace(".weight", ".linear.weight")
        if name in cut:
            assert torch.equal(torch.cat([first[inner], second[inner]], cut[name]), weight)
        else:
            assert torch.equal(first[inner], weight)
            assert torch.equal(second[inner], weight)


def test_a_bias_is_added_once(tmp_path: Path) -> None:
    """GPT-NeoX has biases after its sums."""
    tiny.build("GPTNeoX", tmp_path)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path)
    biases = [share(tmp_path, OneOf(rank, 2)).gpt_neox.layers[0].attention.dense.linear.bias for rank in range(2)]
    with torch.no_grad():
        assert torch.equal(biases[0] + biases[1], whole.gpt_neox.layers[0].attention.dense.bias)


def test_an_output_layer_that_is_the_embedding(tmp_path: Path) -> None:
    tiny.build("Qwen2", tmp_path, tie_word_embeddings=True)
    model = share(tmp_path, OneOf(1, 2))
    assert isinstance(model.lm_head, Gathered)
    assert torch.equal(model.lm_head.linear.weight, model.model.embed_tokens.weight[tiny.VOCAB // 2 :])


def test_a_vocabulary_that_does_not_divide_stays_whole(tmp_path: Path) -> None:
    tiny.build("Llama", tmp_path, vocab_size=97)
    model = share(tmp_path, OneOf(1, 2))
    assert model.lm_head.weight.shape == (97, 64)
    assert isinstance(model.model.layers[0].mlp.down_proj, Reduced)


def test_the_streamed_model_is_the_model(folder: Path) -> None:
    """It has no weights before and after, and gives the model's own logits."""
    options, config = EngineOptions(model=str(folder)), load.load_config(folder)
    model = skeleton(folder, config, options)
    stream(model, Weights(folder, config, options), torch.device("cpu"))
    prompts = [np.array(p) for p in tiny.prompts((9, 20))]
    expected = reference(AutoModelForCausalLM.from_pretrained(folder), prompts)
    for got, wanted in zip(reference(model, prompts), expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    assert sum(p.numel() for p in model.parameters()) == 0


def test_several_files(tmp_path: Path) -> None:
    tiny.build("Llama", tmp_path)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    whole.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert torch.equal(share(tmp_path, OneOf(1, 2)).model.norm.weight, whole.model.norm.weight)


def test_a_step_as_a_message() -> None:
    pieces = [Piece(np.array([7]), 17, 1, (0,)), Piece(np.arange(4), 32, 0, (1, 3))]
    step = build(pieces, np.arange(40, dtype=np.int32).reshape(2, 20), 4)
    sent = step_of(msgspec.msgpack.decode(msgspec.msgpack.encode(forward_of(step)), type=Forward))
    assert sent.decodes == step.decodes
    for name in ("ids", "positions", "slots", "query_start", "contexts", "tables", "emit"):
        was, came = getattr(step, name), getattr(sent, name)
        assert (was.dtype, was.tolist()) == (came.dtype, came.tolist())


class Thread(OneOf):
    """A rank that is a thread of this process. One runs at a time, as the kernels want it: they give way where ranks
    meet."""

    turn = threading.Lock()

    def __init__(self, rank: int, size: int, parts: list[torch.Tensor], barrier: threading.Barrier) -> None:
        super().__init__(rank, size)
        self.parts, self.barrier = parts, barrier

    def _all(self, x: torch.Tensor) -> list[torch.Tensor]:
        self.parts[self.rank] = x.clone()
        self._meet()
        parts = list(self.parts)
        self._meet()
        return parts

    def _meet(self) -> None:
        self.turn.release()
        self.barrier.wait(60)
        self.turn.acquire()

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        return x.copy_(torch.stack(self._all(x)).sum(0))

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat(self._all(x), -1)


@pytest.mark.parametrize("family", tiny.CUT)
def test_packed_layers_of_two_ranks(family: str, tmp_path: Path) -> None:
    """As fused and packed as those of one rank, and with the same logits."""
    tiny.build(family, tmp_path)
    AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).save_pretrained(tmp_path)
    exact = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    (prompt,) = tiny.prompts([23])
    step = build([Piece(np.array(prompt), 0, 0, (22,))], np.array([[1, 2]], np.int32), 16)
    barrier, parts = threading.Barrier(2), [torch.empty(0)] * 2

    def run(rank: int) -> torch.Tensor:
        model, backend = share(tmp_path, Thread(rank, 2, parts, barrier)), Cpu()
        backend.prepare(model)
        model.set_attn_implementation(ATTENTION)
        assert any(isinstance(m, FusedLayer) for m in model.modules()) == (family != "GPTNeoX")
        assert not any(isinstance(m, torch.nn.Linear) for m in model.modules())
        heads = exact.config.num_attention_heads if family == "GPTNeoX" else 2
        kv = Kv(*(torch.full((2, 3, heads // 2, 16, 16), torch.nan) for _ in range(2)))
        return backend.forward(model, step, kv)

    def run_in_turn(rank: int) -> torch.Tensor:
        with Thread.turn, torch.inference_mode():
            return run(rank)

    with ThreadPoolExecutor(2) as pool, torch.inference_mode():
        got, other = pool.map(run_in_turn, range(2))
        wanted = exact(torch.tensor([prompt])).logits[0, -1:]
    assert torch.equal(got, other)
    assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()


# What ranks compute together


@pytest.fixture
def three() -> Iterator[list[Sockets]]:
    peers: list[list[socket.socket]] = [[], [], []]
    for one, other in itertools.combinations(range(3), 2):
        for rank, end in zip((one, other), socket.socketpair(), strict=True):
            peers[rank].append(end)
    yield [Sockets(ends, rank) for rank, ends in enumerate(peers)]
    for end in itertools.chain(*peers):
        end.close()


@pytest.mark.parametrize("rows", [0, 1, 3, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_sums_and_gathers(three: list[Sockets], rows: int, dtype: torch.dtype) -> None:
    """Of nothing, of little, of more than fits at a time; from views too. All have the same to the last bit."""
    whole = torch.randn(3, 2, rows, 1001, generator=torch.Generator().manual_seed(1)).to(dtype)
    parts = [whole[rank].transpose(0, 1) for rank in range(3)]
    with ThreadPoolExecutor(3) as pool:
        sums = list(pool.map(lambda group, part: group.sum(part.clone()), three, parts))
        gathers = list(pool.map(lambda group, part: group.gather(part), three, parts))
    assert all(torch.equal(one, parts[0] + parts[1] + parts[2]) for one in sums)
    assert all(torch.equal(one, torch.cat(parts, -1)) for one in gathers)


def test_a_rank_that_is_gone_is_noticed_at_once(three: list[Sockets]) -> None:
    for peer in three[2]._peers:
        peer.close()
    with pytest.raises(RankLost, match="rank 0 cannot reach another"):
        three[0].sum(torch.ones(4))


def test_nobody_waits_for_ever(three: list[Sockets]) -> None:
    for peer in three[0]._peers:
        peer.settimeout(0.1)
    with pytest.raises(RankLost, match="timed out"):
        three[0].sum(torch.ones(4))


# The instance


@pytest.fixture(scope="module")
def pair(folder: Path) -> Iterator[Any]:
    engine = tiny.engine(folder, tensor_parallel_size=2)
    yield engine
    tiny.close(engine)


def test_what_it_says_of_itself(pair: Any, folder: Path) -> None:
    alone = tiny.engine(folder).info
    assert pair.info.tensor_parallel_size == 2
    assert "tensor parallel over 2 ranks" in pair.info.notes[0]
    assert (pair.info.pages, pair.info.kv_bytes_per_token) == (alone.pages, alone.kv_bytes_per_token)


def test_the_ranks_kv_side_by_side_is_the_models(pair: Any, folder: Path) -> None:
    """This process sees the heads of all ranks, in their order; pages have the same numbers."""
    alone = tiny.engine(folder)
    (prompt,) = tiny.prompts([30])
    for engine in (pair, alone):
        driver = tiny.Driver(engine)
        driver.add(1, prompt, tiny.greedy(3))
        driver.step({1: 30})
    pages = pair.pages_of(1, 28)
    assert pages == alone.pages_of(1, 28)
    assert [kv.keys.shape[2] for kv in pair.kv] == [1, 1]
    for part in ("keys", "values"):
        joined = torch.cat([getattr(kv, part)[:, pages] for kv in pair.kv], dim=2)
        torch.testing.assert_close(joined, getattr(alone.kv[0], part)[:, pages], atol=1e-5, rtol=0)
    stores = store_of(pair.kv), store_of(alone.kv)
    assert stores[0].layout == stores[1].layout
    chunks = (store.gather(pages, 0, 2).view(np.float32) for store in stores)
    np.testing.assert_allclose(*chunks, atol=1e-5)
    pair.clear()


def test_pages_that_are_written_here_are_read_there(pair: Any, folder: Path) -> None:
    """As a transport does it: the pages of another instance become those of a job here, which goes on from them."""
    alone = tiny.engine(folder)
    (prompt,) = tiny.prompts([30], seed=4)
    source, here = tiny.Driver(alone), tiny.Driver(pair)
    source.add(1, prompt, tiny.greedy(10))
    source.step({1: 30})
    pair.receive(77, ())
    for own, theirs in zip(pair.room(77, 30), alone.pages_of(1, 30), strict=True):
        for rank, kv in enumerate(pair.kv):
            kv.keys[:, own] = alone.kv[0].keys[:, theirs, rank : rank + 1]
            kv.values[:, own] = alone.kv[0].values[:, theirs, rank : rank + 1]
    pair.add(1, [*prompt, *source.outputs[1]], len(prompt), tiny.greedy(10))
    pair.adopt(1, 77, 30)
    here.known[1], here.done[1], here.outputs[1] = 31, 30, list(source.outputs[1])
    assert here.finish_all()[1] == source.finish_all()[1]


def test_dummy_weights_are_those_of_the_whole_model(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (prompt,) = tiny.prompts([20])
    outputs = []
    for ranks in (1, 2):
        engine = tiny.engine(tmp_path, load_format="dummy", seed=7, tensor_parallel_size=ranks)
        driver = tiny.Driver(engine)
        driver.add(0, prompt, tiny.greedy(8))
        outputs.append(driver.finish_all()[0])
        tiny.close(engine)
    assert outputs[0] == outputs[1]


def test_memory_that_nobody_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest rank's pages are everyone's."""
    monkeypatch.setattr("penstock.engine.member.free_bytes", lambda: 8 * 100 * 1024)
    engine = tiny.engine(folder, pages=None, tensor_parallel_size=2)
    # A quarter for the ranks together; of a page, a rank has 4 tokens of 256 bytes.
    assert engine.info.pages == 100
    before = _ranks_below(psutil.Process())
    tiny.close(engine)
    assert len(_ranks_below(psutil.Process())) == len(before) - 1


def test_what_one_rank_cannot_record_none_replays(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    team, forgotten = pair._backend, []
    monkeypatch.setattr(team._member, "capture", lambda width: f"not for {width} pages")
    monkeypatch.setattr(team._member, "forget", lambda: forgotten.append(True))
    assert team.capture(8) == "not for 8 pages"
    assert forgotten
    driver = tiny.Driver(pair)
    driver.add(0, [5, 6, 7], tiny.greedy(4))
    assert len(driver.finish_all()[0]) == 4


def test_after_an_error_within_a_step_there_is_no_other_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranks would no longer be in step. Not even what handles errors of steps goes on."""
    engine = tiny.engine(folder, tensor_parallel_size=2)
    driver = tiny.Driver(engine)
    driver.add(0, [5, 6, 7], tiny.greedy(9))
    driver.step({0: 3})
    before = _ranks_below(psutil.Process())
    monkeypatch.setattr(engine._model, "forward", lambda **_: 1 / 0)
    with pytest.raises(RankLost, match="rank 0: division by zero"):
        driver.step({0: 1})
    assert not issubclass(RankLost, Exception)
    assert len(_ranks_below(psutil.Process())) == len(before) - 1
    monkeypatch.undo()
    with pytest.raises(RankLost, match="rank 1 takes no message"):
        driver.step({0: 1})


# What is refused


@pytest.mark.parametrize(
    ("family", "message"), [("OPT", "'opt' cannot be cut.*no plan"), ("Phi3", "'phi3' cannot be cut.*colwise_gather")]
)
def test_families_that_cannot_be_cut_are_named(family: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=message):
        tiny.engine(tiny.build(family, tmp_path), tensor_parallel_size=2)


def test_sizes_that_work_are_named() -> None:
    config = AutoConfig.for_model("llama", hidden_size=48, num_attention_heads=12, num_key_value_heads=12,
                                  intermediate_size=96, num_hidden_layers=1, vocab_size=8)  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    check_size(model, 6)
    with pytest.raises(ValueError, match=r"size 5: 12 attention heads, 12 KV heads .* choose one of 1, 2, 3, 4, 6, 12"):
        check_size(model, 5)


def test_a_size_that_does_not_divide_is_refused_at_the_start(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"4 attention heads, 2 KV heads.*choose one of 1, 2$"):
        tiny.engine(folder, tensor_parallel_size=4)
    with pytest.raises(ValueError, match="tensor_parallel_size 0: at least 1"):
        tiny.engine(folder, tensor_parallel_size=0)


def test_what_all_ranks_refuse_is_said_once_and_none_is_left(tmp_path: Path) -> None:
    tiny.build("Qwen2", tmp_path, sliding_window=32, use_sliding_window=True, max_window_layers=0)
    before = _ranks_below(psutil.Process())
    with pytest.raises(Unsupported, match=r"'qwen2'.* window of 32 tokens"):
        tiny.engine(tmp_path, tensor_parallel_size=2)
    assert _ranks_below(psutil.Process()) == before


def test_a_checkpoint_with_other_names(tmp_path: Path) -> None:
    tiny.build("Llama", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    model.model.save_pretrained(tmp_path)
    with pytest.raises(Unsupported, match=r"'llama' cannot be cut.* no 'model\.embed_tokens\.weight'"):
        tiny.engine(tmp_path, tensor_parallel_size=2)


# How they end


def _ranks_below(process: psutil.Process) -> list[psutil.Process]:
    return [p for p in process.children() if "penstock.engine.parallel.rank" in " ".join(p.cmdline())]


class Running:
    """An instance in a process of its own, and its other rank."""

    def __init__(self, folder: Path, what: str) -> None:
        command = [sys.executable, str(Path(__file__).with_name("team_process.py")), str(folder), what]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.process.stdout is not None
        self.rank = psutil.Process(int(self.process.stdout.readline()))

    def ended(self) -> str:
        """Waits for the end of both; what was said on the way."""
        _, said = self.process.communicate(timeout=60)
        psutil.wait_procs([self.rank], timeout=30)
        assert not self.rank.is_running() or self.rank.status() == psutil.STATUS_ZOMBIE
        return said.decode()


@pytest.mark.parametrize("what", ["idle", "busy"])
def test_an_instance_ends_with_any_of_its_ranks(folder: Path, what: str) -> None:
    running = Running(folder, what)
    running.rank.kill()
    said = running.ended()
    assert "rank 1 of this instance ended" in said or "rank 0 cannot reach another" in said or "rank 1 takes" in said
    assert running.process.returncode != 0


def test_ranks_end_with_the_instance(folder: Path) -> None:
    running = Running(folder, "busy")
    running.process.kill()
    running.ended()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a stopped process with its parent")
def test_even_a_stopped_rank_ends_with_the_instance(folder: Path) -> None:
    running = Running(folder, "idle")
    running.rank.suspend()
    running.process.send_signal(signal.SIGKILL)
    running.ended()
