"""An MLLM answers referring questions in mask words, and is scored: jobs/evaluate_mllm.py."""
