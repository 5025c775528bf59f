"""Generation, and a step of GRPO, with a Qwen2.5-VL of 3B and random weights.

The sampler has weights in bfloat16, the learner the same ones in float32 and computes in bfloat16, as in
production; both have the head in float32.
"""

import copy
import math
from typing import Any

import numpy as np
import torch
from torch import nn

from samtok.mllm.activations import keep_fewer_activations
from samtok.mllm.chat import Encoded, Turn
from samtok.mllm.family import Adapter
from samtok.mllm.float_head import use_float32_head
from samtok.mllm.generation import processor_of
from samtok.mllm.sampling import Sampled, response_log_probs, sample
from samtok.rl.policy import PolicySettings, policy_terms
from samtok.shapes import WorldConfig, make_scene
from tests.benchmarks.gpu.place import Found, Place
from tests.benchmarks.gpu.sft import IMAGE_HW, model_3b
from tests.benchmarks.measuring import seconds

BYTES = 18
"""Of a weight: float32 with its gradient and two moments, and the sampler's in bfloat16."""
MOST_APART = 0.02
"""Mean difference of log-probabilities at equal weights; GRPO's own limit for bfloat16 is of this size."""


def generation(place: Place) -> Found:
    """Measures sampling with transformers' generation, some and many prompts at a time."""
    adapter, model, _ = model_3b(place)
    use_float32_head(model.eval())
    rows = []
    for count in place.sizes.prompts:
        place.forget_memory()
        prompts = [_prompt(adapter, number) for number in range(count)]
        said: list[list[Sampled]] = []

        def work(prompts: list[Encoded] = prompts, said: list[list[Sampled]] = said) -> None:
            said[:] = _sampled(place, adapter, model, prompts, 1)

        took = place.median_s(work)
        tokens = sum(len(one.ids) for group in said for one in group)
        rows.append(
            {
                "prompts": count,
                "prompt_tokens": sum(map(len, prompts)),
                "new_tokens": tokens,
                "seconds": took,
                "new_tokens_per_s": tokens / took,
                "responses_per_s": count / took,
                "peak_gib": place.peak_gib(),
            }
        )
    return Found(rows, "Engine hf in bfloat16, one image of 1024 tokens a prompt, one response each.")


def step(place: Place) -> Found:
    """Samples groups, compares both sides' log-probabilities of them, and takes a step."""
    adapter, sampler, note = model_3b(place, bytes_each=BYTES)
    use_float32_head(sampler.eval())
    learner = copy.deepcopy(sampler).float()
    use_float32_head(learner)
    adapter.freeze(learner, vision=False, projector=True, llm=True)
    keep_fewer_activations(learner.train())
    trained = [weight for weight in learner.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=place.device == "cuda")
    prompts = [_prompt(adapter, number) for number in range(place.sizes.prompts[0])]
    count = place.sizes.responses
    groups: list[list[Sampled]] = []
    sample_s = seconds(lambda: groups.extend(_sampled(place, adapter, sampler, prompts, count)))
    rollout = torch.from_numpy(np.concatenate([one.log_probs for group in groups for one in group]))
    advantages = torch.linspace(-1, 1, count, device=place.device).repeat(len(prompts))
    before = _apart(place, adapter, learner, prompts, groups, rollout)
    losses: list[float] = []

    def learn() -> None:
        for number, (prompt, group) in enumerate(zip(prompts, groups, strict=True)):
            found = _log_probs(place, adapter, learner, [prompt], [group])
            own = advantages[number * count : (number + 1) * count][found.sequence]
            settings = PolicySettings("ppo", 0.2, 0.2, None)
            terms = policy_terms(found.log_probs, found.log_probs.detach(), own, found.sequence, settings)
            loss = terms.loss.sum() / len(rollout)
            loss.backward()
            losses.append(float(loss))
        nn.utils.clip_grad_norm_(trained, 1.0, error_if_nonfinite=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    learn_s = seconds(learn)
    tokens = sum(
        len(prompt) + len(one.ids) for prompt, group in zip(prompts, groups, strict=True) for one in group
    )
    row = {
        "layers": learner.config.get_text_config().num_hidden_layers,
        "responses": len(prompts) * count,
        "new_tokens": len(rollout),
        "sample_s": sample_s,
        "learn_s": learn_s,
        "learnt_tokens_per_s": tokens / learn_s,
        "parity_mean": before["mean"],
        "parity_max": before["max"],
        "peak_gib": place.peak_gib(),
    }
    problems = []
    if not all(map(math.isfinite, losses)):
        problems.append(f"losses {losses} are not finite.")
    if not before["mean"] < MOST_APART:
        problems.append(
            f"log-probabilities differ by {before['mean']:.4f} on average, expected less than {MOST_APART}."
        )
    return Found(
        [row], f"{note.split('.')[0]} for the sampler; the learner's in float32, autocast.", problems
    )


def _prompt(adapter: Adapter, number: int) -> Encoded:
    scene = make_scene(0, number, WorldConfig(sizes_hw=(IMAGE_HW,)))
    return adapter.encode_prompt(
        [Turn("user", (0, f"Please find the {scene.objects[0].kind}."))], [scene.image]
    )


def _sampled(
    place: Place, adapter: Adapter, model: Any, prompts: list[Encoded], count: int
) -> list[list[Sampled]]:
    return sample(model, adapter, prompts, num_responses=count, max_new_tokens=place.sizes.new_tokens)


def _log_probs(place: Place, adapter: Adapter, model: Any, prompts: Any, groups: Any) -> Any:
    responses = [[one.ids for one in group] for group in groups]
    with torch.autocast(place.device, torch.bfloat16):
        return response_log_probs(model, adapter, prompts, responses, processor_of(adapter, grammar=False))


@torch.no_grad()
def _apart(
    place: Place, adapter: Adapter, model: Any, prompts: list[Encoded], groups: Any, rollout: torch.Tensor
) -> dict[str, float]:
    pairs = zip(prompts, groups, strict=True)
    own = torch.cat([_log_probs(place, adapter, model, [p], [g]).log_probs.cpu() for p, g in pairs])
    apart = (own - rollout).abs()
    return {"mean": float(apart.mean()), "max": float(apart.max())}
