"""`LLM.embed` and `LLM.score`: on a fake engine, and once on a real one."""

from __future__ import annotations

import math
import re
import struct
import threading

import pytest

from shardwise import LLM, PoolingParams, RequestError, SamplingParams, ShardwiseError
from shardwise.runtime.wire import PIECE_BYTES
from tests.test_llm import Make, until

ROOT = struct.unpack("<f", struct.pack("<f", math.sqrt(0.5)))[0]


def test_embeddings(fake: Make):
    engine = fake()
    llm = LLM.on(engine)
    hidden = engine.setup.layout.model.hidden
    mean, other = llm.embed([[5, 5, 7, 9], [7]], pooling="mean", normalize=False)
    assert engine.submitted[0] == ((5, 5, 7, 9), PoolingParams("mean")) and mean.finished
    found = {n: value for n, value in enumerate(mean.outputs.embedding) if value}
    assert found == {0: 1.0, 5: 0.5, 7: 0.25, 9: 0.25} and len(mean.outputs.embedding) == hidden
    assert other.prompt_token_ids == [7] and other.outputs.embedding[7] == 1.0
    [last] = llm.embed([[5, 5, 7, 9]])
    assert {n: value for n, value in enumerate(last.outputs.embedding) if value} == {0: ROOT, 9: ROOT}
    [short] = llm.embed([[5, 5, 7, 9]], dimensions=4)
    assert short.outputs.embedding == [1.0, 0.0, 0.0, 0.0]
    assert llm.embed("Once")[0].prompt_token_ids == llm.get_tokenizer().encode("Once")


def test_scores(fake: Make):
    engine = fake()
    llm = LLM.on(engine, seed=1)
    one, two = llm.score("The cat", ["sat", "sat down"])
    assert one.outputs.score == two.outputs.score == -0.5
    encode = llm.get_tokenizer().encode
    assert two.prompt_token_ids == [*encode("The cat"), *encode("sat down", add_special_tokens=False)]
    assert len(llm.score(["a", "b", "c"], ["d", "e", "f"])) == 3 and engine.running == 0


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda llm: llm.embed([]), "prompts is empty"),
        (lambda llm: llm.embed("a", pooling="cls"), "pooling is 'cls'; it takes one of 'last', 'mean'"),
        (lambda llm: llm.embed("a", normalize=1), "normalize is 1; it takes True or False"),
        (lambda llm: llm.embed("a", dimensions=0), "dimensions is 0; it takes a whole number from 1 to 192"),
        (lambda llm: llm.embed("a", dimensions=193), "dimensions is 193; it takes a whole number from 1 to 192"),
        (lambda llm: llm.embed(["a", [1] * 5000]), "prompt 1: the prompt has 5000 tokens; it may have 1024"),
        (lambda llm: llm.embed([[1], [99999]]), "prompt 1: the prompt: token id 99999 is not in"),
        (lambda llm: llm.score("a", []), "text_1 has 1 texts and text_2 has 0"),
        (lambda llm: llm.score(["a", "b"], ["c"] * 3), "text_1 has 2 texts and text_2 has 3"),
        (lambda llm: llm.score("a", [5]), "text_2 is [5]; it takes a text, or a list of texts"),
        (lambda llm: llm.score("a", ["b", ""]), "the second text of pair 1 is empty"),
        (lambda llm: llm.score("\udfff", "b"), "the first text of pair 0 has half a surrogate pair"),
    ],
)
def test_what_cannot_be_embedded_or_scored(fake: Make, ask, message):
    engine = fake(held=True)
    with pytest.raises(RequestError, match=re.escape(message)):
        ask(LLM.on(engine))
    until(lambda: engine.running == 0)


def test_an_aborted_embedding_fails(fake: Make):
    engine = fake(held=True)
    llm = LLM.on(engine)

    def leave() -> None:
        until(lambda: engine.running == 2)
        engine.abort(2)

    thread = threading.Thread(target=leave)
    thread.start()
    with pytest.raises(ShardwiseError, match="prompt 1 failed: it was aborted"):
        llm.embed(["a", "b"])
    thread.join()
    assert engine.running == 0


def test_embeddings_and_scores_with_a_model():
    """More vectors in one step than one message holds, out of a process; and scores that are those of the prompt's tokens."""
    many = [[n % 100 + 1] for n in range(6000)]
    with LLM(dtype="float32", device="cpu", max_num_seqs=6000, max_num_batched_tokens=6000) as llm:
        outputs = llm.embed(many, use_tqdm=False)
        texts = ["The cat sat on the mat.", "Once"]
        means = llm.embed(texts, use_tqdm=False, pooling="mean", normalize=False)
        [score] = llm.score("The cat sat on the", " mat.", use_tqdm=False)
        params = SamplingParams(max_tokens=0, prompt_logprobs=0)
        [whole] = llm.generate([score.prompt_token_ids], params, use_tqdm=False)
    assert 4 * len(many) * len(outputs[0].outputs.embedding) > PIECE_BYTES
    first = [output.outputs.embedding for output in outputs[:100]]
    assert len({tuple(round(x, 4) for x in vector) for vector in first}) == 100
    # They may come in steps of different sizes, whose products round differently.
    assert all(math.dist(output.outputs.embedding, first[n % 100]) < 1e-5 for n, output in enumerate(outputs))
    assert all(abs(math.hypot(*output.outputs.embedding) - 1) < 1e-6 for output in outputs)
    count = len(llm.get_tokenizer().encode(" mat.", add_special_tokens=False))
    logprobs = [next(iter(place.values())).logprob for place in whole.prompt_logprobs[-count:]]
    assert score.outputs.score == pytest.approx(sum(logprobs) / count, abs=1e-6) and score.outputs.score < 0
    with LLM(tensor_parallel_size=3, dtype="float32", ranks="threads", device="cpu", max_num_batched_tokens=3) as llm:
        again = llm.embed(texts, use_tqdm=False, pooling="mean", normalize=False)
        [cut] = llm.score("The cat sat on the", " mat.", use_tqdm=False)
    for one, other in zip(means, again, strict=True):
        assert other.outputs.embedding == pytest.approx(one.outputs.embedding, abs=1e-5)
    assert cut.outputs.score == pytest.approx(score.outputs.score, abs=1e-5)
