"""A checkpoint's own settings of generation change nothing that is sampled."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from samtok.mllm.adapters import load_adapter, save_pretrained
from samtok.mllm.chat import Encoded, Turn
from samtok.mllm.generation import generate, processor_of
from samtok.mllm.sampling import Sampled, response_log_probs, sample
from tests.tiny_mllm import build, picture

SETTINGS: dict[str, Any] = {
    "min_p": 0.9,
    "top_p": 0.1,
    "top_k": 1,
    "top_h": 0.1,
    "typical_p": 0.1,
    "epsilon_cutoff": 0.5,
    "eta_cutoff": 0.5,
    "temperature": 0.1,
    "repetition_penalty": 5.0,
    "encoder_repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "encoder_no_repeat_ngram_size": 1,
    "min_new_tokens": 12,
    "min_length": 200,
    "max_length": 3,
    "max_time": 1e-9,
    "num_beams": 3,
    "num_return_sequences": 2,
    "penalty_alpha": 0.6,
    "dola_layers": "low",
    "prompt_lookup_num_tokens": 2,
    "guidance_scale": 9.0,
    "renormalize_logits": True,
    "sequence_bias": [[[40], 50.0]],
    "bad_words_ids": [[id_] for id_ in range(20, 200)],
    "suppress_tokens": list(range(20, 200)),
    "begin_suppress_tokens": list(range(20, 200)),
    "forced_bos_token_id": 41,
    "forced_eos_token_id": 42,
    "exponential_decay_length_penalty": [1, 9.0],
    "stop_strings": ["a", "e"],
    "watermarking_config": {"bias": 9.0},
    "eos_token_id": list(range(20, 200)),
    "return_dict_in_generate": True,
}


class Speaker:
    """A model of a folder, and two questions."""

    def __init__(self, folder: Path) -> None:
        self.adapter = load_adapter(folder)
        self.model = self.adapter.load_model(folder)
        seen = [Turn("user", (0, "Where is the blue star?"))]
        self.prompts: list[Encoded] = [
            self.adapter.encode_prompt(seen, [picture(1)]),
            self.adapter.encode_prompt([Turn("user", ("Be brief.",))], []),
        ]

    def drawn(self) -> list[list[Sampled]]:
        return sample(self.model, self.adapter, self.prompts, num_responses=2, max_new_tokens=8)

    def said(self) -> tuple[list[list[int]], list[np.ndarray], list[list[int]]]:
        """Returns sampled tokens, their log-probabilities, and greedy answers."""
        drawn = [one for group in self.drawn() for one in group]
        answers = generate(self.model, self.adapter, self.prompts, max_new_tokens=6, grammar=False)
        return [one.ids.tolist() for one in drawn], [one.log_probs for one in drawn], answers


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def speaker(folder) -> Speaker:
    return Speaker(folder)


@pytest.fixture(scope="module")
def plain(speaker) -> tuple[list[list[int]], list[np.ndarray], list[list[int]]]:
    return speaker.said()


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.slow
@pytest.mark.numerics
def test_a_setting_of_the_checkpoint_changes_nothing_that_is_said(speaker, plain, name):
    theirs = speaker.model.generation_config = GenerationConfig(**{"do_sample": True, name: SETTINGS[name]})
    ids, log_probs, answers = speaker.said()
    assert (ids, answers) == (plain[0], plain[2])
    np.testing.assert_array_equal(np.concatenate(log_probs), np.concatenate(plain[1]))
    assert speaker.model.generation_config is theirs


def test_a_learner_finds_the_probabilities_that_were_recorded_and_the_folder_keeps_its_settings(
    folder, tmp_path
):
    own = {"do_sample": True, "min_p": 0.5, "no_repeat_ngram_size": 1, "encoder_repetition_penalty": 3.0}
    (folder / "generation_config.json").write_text(json.dumps(own))
    speaker = Speaker(folder)
    assert speaker.model.generation_config.min_p == 0.5
    groups = speaker.drawn()
    ids = [[one.ids for one in group] for group in groups]
    processor = processor_of(speaker.adapter, grammar=False)
    with torch.no_grad():
        found = response_log_probs(speaker.model, speaker.adapter, speaker.prompts, ids, processor)
    recorded = np.concatenate([one.log_probs for group in groups for one in group])
    np.testing.assert_allclose(recorded, found.log_probs.numpy(), atol=1e-5)
    save_pretrained(speaker.model, speaker.adapter, tmp_path)
    assert own.items() <= json.loads((tmp_path / "generation_config.json").read_text()).items()
