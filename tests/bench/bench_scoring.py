"""Expert scoring against the transformers pipeline as rewardbench runs it, and against the bare model.

    python tests/bench/bench_scoring.py [--items 2] [--rounds 3] [--threads 1]

A randomly initialised Llama reward model of about 100 M parameters scores items of 2 and of 4 responses of 60 tokens
after a prefix of 400. The peer is `pipeline("text-classification")` with padding, at its best batch size; for
`scoring_useful_share` it is the model's own forward pass on batches of equal length, at its best batch size. Arms
alternate and read the same rows. Prints one JSON line per figure.

Rates are per processor second, of the fastest round of each arm: with one thread that is what a clock shows on a
machine that does nothing else, and it stays right on one that does. With more threads than free cores, threads wait
for each other in every operation, and the figures say little; `wall_ratio` compares seconds of the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence

import torch
import transformers as hf

from carevl.miniworld.weights import WEIGHTS
from carevl.models.conversations import encode
from carevl.models.reward_scorer import RewardScorer

PREFIX, RESPONSE = 400, 60
BATCHES = (1, 2, 4, 8)
Conversations = list[tuple[str, str]]


def save_model(directory: str) -> None:
    """A Llama reward model of 97 M random parameters, with the tokenizer of a shipped expert."""
    tokenizer = hf.AutoTokenizer.from_pretrained(WEIGHTS / "expert-llama")
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=16000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=4096,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    hf.LlamaForSequenceClassification(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def draw(tokenizer: hf.PreTrainedTokenizerBase, items: int, responses: int) -> Conversations:
    """Items of exactly PREFIX shared tokens and RESPONSE tokens per response; every digit is one token."""
    rng = random.Random(responses)
    [one, other] = (encoded.ids for encoded in encode(tokenizer, [("1", "2"), ("1", "3")]))
    header = next(i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b) - 1
    tail = len(one) - header - 2
    drawn = []
    for _ in range(items):
        turn = "".join(rng.choices("0123456789", k=PREFIX - header))
        for first in range(responses):
            drawn.append((turn, f"{first}" + "".join(rng.choices("0123456789", k=RESPONSE - tail - 1))))
    assert {len(encoded.ids) for encoded in encode(tokenizer, drawn)} == {PREFIX + RESPONSE}
    return drawn


class Peer:
    """The pipeline with the arguments of rewardbench's `run_rm`."""

    def __init__(self, directory: str) -> None:
        self.pipeline = hf.pipeline("text-classification", model=directory, dtype=torch.float32)

    def score(self, conversations: Conversations, batch_size: int) -> list[float]:
        texts = [
            self.pipeline.tokenizer.apply_chat_template(
                [{"role": "user", "content": turn}, {"role": "assistant", "content": response}], tokenize=False
            )
            for turn, response in conversations
        ]
        options = {"padding": True, "truncation": True, "max_length": 2048, "function_to_apply": "none"}
        return [one["score"] for one in self.pipeline(texts, batch_size=batch_size, **options)]

    @torch.inference_mode()
    def forward(self, ids: torch.Tensor, batch_size: int) -> None:
        for batch in ids.split(batch_size):
            self.pipeline.model(input_ids=batch, attention_mask=torch.ones_like(batch))


def timed(arms: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """(processor seconds, wall seconds) of each arm's fastest round; arms alternate."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, run in arms.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            taken[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {name: min(seconds) for name, seconds in taken.items()}


def best_batch(run: Callable[[int], object]) -> int:
    """The batch size that is fastest in one round."""
    arms = {str(size): lambda size=size: run(size) for size in BATCHES}
    return int(min(timed(arms, 1).items(), key=lambda arm: arm[1])[0])


def tell(
    figure: str,
    unit: str,
    amount: float,
    peer_amount: float,
    goal: float,
    seconds: Sequence[tuple[float, float]],
    **more: object,
) -> None:
    """One line: ours and the peer's rate."""
    (ours, ours_wall), (peers, peers_wall) = seconds
    value, peer = amount / ours, peer_amount / peers
    line = {
        "figure": figure,
        "value": round(value, 3),
        "unit": unit,
        "peer": round(peer, 3),
        "ratio": round(value / peer, 3),
        "goal": goal,
        "wall_ratio": round((amount / ours_wall) / (peer_amount / peers_wall), 3),
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(line | more), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    hf.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as directory:
        save_model(directory)
        scorer, peer = RewardScorer(directory, "float32", batch_tokens=2048), Peer(directory)
    few = draw(scorer.tokenizer, arguments.items, 2)
    size = best_batch(lambda size: peer.score(few, size))
    for responses, goal in ((2, 1.7), (4, 2.7)):
        rows = draw(scorer.tokenizer, arguments.items, responses)
        arms = {"ours": lambda rows=rows: scorer.score(rows), "peer": lambda rows=rows: peer.score(rows, size)}
        off = max(abs(a - b) for a, b in zip(arms["ours"](), arms["peer"](), strict=True))
        seconds = timed(arms, arguments.rounds)
        n = arguments.items
        figure = f"scoring_{responses}"
        tell(figure, "items/cpu-s", n, n, goal, list(seconds.values()), peer_batch=size, largest_difference=off)
    ids = torch.tensor([one.ids for one in encode(scorer.tokenizer, few)])
    dense = best_batch(lambda size: peer.forward(ids, size))
    seconds = timed({"ours": lambda: scorer.score(few), "peer": lambda: peer.forward(ids, dense)}, arguments.rounds)
    useful = arguments.items * (PREFIX + 2 * RESPONSE)
    tell("scoring_useful_share", "tokens/cpu-s", useful, ids.numel(), 0.85, list(seconds.values()), peer_batch=dense)


if __name__ == "__main__":
    main()
