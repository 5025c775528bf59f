"""Ask an MLLM the questions of a chat corpus and score its masks: GRES, RES or REC, with a report.

    python jobs/evaluate_mllm.py --benchmark gres --model MODEL --chat CHAT --out OUT
    python jobs/evaluate_mllm.py --preset tour --beside untrained=runs/tour/evaluation-untrained
    ray job submit --working-dir . -- python jobs/evaluate_mllm.py --preset paper-gres \\
        --model URI --chat URI --tokenizer URI --out URI --pool.actors 8

Running it again resumes: only shards without a commit record are done.
"""

from pipelines import cli
from pipelines.mllm_evaluation.config import PRESETS, EvaluateMllmConfig


def main(argv: list[str] | None = None) -> int:
    config = cli.parse(EvaluateMllmConfig, PRESETS, argv, doc=__doc__)
    from pipelines.mllm_evaluation.run import evaluate_mllm  # Ray and torch load now

    return evaluate_mllm(config)


if __name__ == "__main__":
    raise SystemExit(main())
