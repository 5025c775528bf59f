"""Ask an MLLM the questions of a chat corpus and score its masks: GRES, RES or REC, with a report.

    python jobs/evaluate_mllm.py --preset smoke
    python jobs/evaluate_mllm.py --model tour-mllm --chats runs/embedded/gres-val/chats --tokenizer tour \\
        --out runs/evaluation-tour
    ray job submit --working-dir . -- python jobs/evaluate_mllm.py --preset paper-gres \\
        --model s3://models/mllm --chats s3://chats/grefcoco --tokenizer s3://models/tokenizer \\
        --out s3://evaluations/mllm --workers 8

Running it again resumes: only shards without a commit record are done.
"""

from pipelines import cli, embedded
from pipelines.mllm_evaluation.config import PRESETS, EvaluateMllmConfig
from pipelines.mllm_evaluation.job import evaluate_mllm


def main(argv: list[str] | None = None) -> int:
    return evaluate_mllm(cli.parse(EvaluateMllmConfig, PRESETS, argv, doc=__doc__), inputs=embedded)


if __name__ == "__main__":
    cli.leave(main())
