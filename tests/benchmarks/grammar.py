"""What the grammar of mask words costs, as ratios measured in one run.

    python -m tests.benchmarks.grammar
    python -m tests.benchmarks.grammar --parts scale --device cuda --dtype bfloat16

``generate`` compares generation with and without it on a tiny model, in turn; both say the same number of
tokens. ``scale`` compares it with one product that a real model makes in a step: hidden states and output
embeddings, at the width and vocabulary of a 3B model.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LogitsProcessorList

from samtok.mllm.adapters import load_adapter
from samtok.mllm.chat import Turn
from samtok.mllm.grammar import MaskWordGrammar
from samtok.mllm.tiny.models import build_tiny, default_texts
from samtok.mllm.vocab import MaskVocabulary, WordIds
from tests.benchmarks.measuring import machine, seconds


def main() -> int:
    """Runs the parts that are asked for, prints a line each and saves all figures as JSON."""
    options = _options()
    torch.set_num_threads(options.threads)
    parts = {"generate": generate_part, "scale": scale_part}
    found: dict = {"machine": machine(options.device), "options": vars(options)}
    found |= {name: parts[name](options) for name in options.parts}
    options.output.write_text(json.dumps(found, indent=2, default=str) + "\n")
    print(f"saved {options.output}")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=("generate", "scale"), default=["generate", "scale"])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of scale")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of each answer")
    parser.add_argument("--vocab", type=int, default=152_064)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--output", type=Path, default=Path("benchmark_grammar.json"))
    return parser.parse_args()


def generate_part(options: argparse.Namespace) -> dict:
    """Times generation by a tiny model with the grammar against the same without."""
    with tempfile.TemporaryDirectory() as folder:
        build_tiny("qwen2_5_vl", folder, vocabulary=MaskVocabulary(256, 2), texts=default_texts(), seed=0)
        adapter = load_adapter(folder)
        model = adapter.load_model(folder).to(options.device).eval()
    turn = [Turn("user", ("Segment the red ring.",))]
    batch = adapter.collate([adapter.encode_prompt(turn, [])] * options.batch, side="left")
    del batch["labels"]
    batch = {name: value.to(options.device) for name, value in batch.items()}
    grammar = MaskWordGrammar(adapter.word_ids, len(adapter.tokenizer), adapter.suppressed_ids)
    length = {"min_new_tokens": options.tokens, "max_new_tokens": options.tokens}

    def generate(*processors: MaskWordGrammar) -> None:
        torch.manual_seed(0)
        model.generate(**batch, **length, do_sample=True, logits_processor=LogitsProcessorList(processors))

    found = _compare(options, lambda: generate(grammar), generate)
    print(f"generate: {found['ratio'] - 1:+.2%} ({1e3 * found['without_s'] / options.tokens:.2f} ms a step)")
    return found


def scale_part(options: argparse.Namespace) -> dict:
    """Times the grammar on one step's logits against making them."""
    place = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    hidden = torch.randn(options.batch, options.dim, **place)
    head = torch.randn(options.vocab, options.dim, **place)
    first = options.vocab - 600
    codes = tuple(tuple(range(first + 2 + 256 * i, first + 258 + 256 * i)) for i in range(2))
    grammar = MaskWordGrammar(WordIds(first, first + 1, codes), options.vocab - 80, range(10))
    texts = torch.randint(0, first, (options.batch, 512), device=options.device)
    scores = hidden @ head.T
    grammar(texts, scores)
    found = _compare(options, lambda: grammar(texts, scores), lambda: hidden @ head.T)
    print(f"scale: {found['ratio']:.2%} of {1e3 * found['without_s']:.2f} ms for the logits")
    return found


def _compare(options: argparse.Namespace, work: Callable[[], object], other: Callable[[], object]) -> dict:
    """Times both in turn; the ratio is the median over the pairs."""
    pairs = [(seconds(work), seconds(other)) for _ in range(options.repeats + 1)][1:]
    ratios = [first / second for first, second in pairs]
    return {
        "with_s": statistics.median(first for first, _ in pairs),
        "without_s": statistics.median(second for _, second in pairs),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": statistics.quantiles(ratios, n=4),
    }


if __name__ == "__main__":
    raise SystemExit(main())
