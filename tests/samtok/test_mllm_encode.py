"""Dialogues to token ids and back, for every family."""

import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.chats.corpus import turns_of
from pipelines.dialogues.compose import TASKS, Settings, compose_row
from pipelines.dialogues.style import STYLES
from samtok.errors import CheckpointError, ConfigError, DataError
from samtok.mllm.chat import IGNORE, Encoded, Turn
from samtok.mllm.family import OBJECT_TOKENS, Adapter
from samtok.mllm.pretrained import load_processor
from samtok.mllm.tiny.models import build_tiny
from samtok.mllm.vocab import MaskVocabulary
from tests.code_rows import NUM_CODES, NUM_LEVELS, random_row
from tests.tiny_mllm import EACH_FAMILY, QWEN, TEXTS, build, chat, loaded, mask, picture, samples

SYSTEM = "Be brief."


@pytest.fixture(scope="module", params=EACH_FAMILY)
def adapter(request, tmp_path_factory) -> Adapter:
    return loaded(build(tmp_path_factory.mktemp("tiny"), request.param))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> Adapter:
    return loaded(build(tmp_path_factory.mktemp("tiny")))


def learnt(adapter: Adapter, turns: list[Turn], images: list) -> str:
    labels = adapter.encode(turns, images).labels
    return adapter.tokenizer.decode(labels[labels != IGNORE])


def as_messages(turns: list[Turn]) -> list[dict]:
    """Turns as the chat templates of Hugging Face take them."""

    def part(value: str | int) -> dict:
        return {"type": "image"} if isinstance(value, int) else {"type": "text", "text": value}

    return [{"role": turn.role, "content": [part(value) for value in turn.parts]} for turn in turns]


@pytest.mark.parametrize("family", EACH_FAMILY)
@pytest.mark.parametrize("system", ["", SYSTEM])
@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.slow
@pytest.mark.numerics
def test_ids_and_pixels_are_those_of_the_checkpoints_own_processor(tmp_path, family, system, answered):
    adapter = loaded(build(tmp_path, family, system=system))
    processor = load_processor(tmp_path)
    turns = [*chat(), Turn("user", ("And the red ring?", 1)), *([Turn("assistant", ("No.",))] * answered)]
    images = [picture(0), picture(1, (40, 90))]
    text = processor.apply_chat_template(
        as_messages(turns), tokenize=False, add_generation_prompt=not answered, **adapter.template_options
    )
    begins = adapter.header("assistant")
    if family == "qwen3_5":  # whose template drops the empty thoughts of earlier answers, which we keep
        plain = adapter.header("user").replace("user", "assistant")
        assert text.count(begins) == 1 and text.count(plain) == 2
        text = text.replace(begins, plain).replace(plain, begins)
    theirs = processor(
        images=[Image.fromarray(image) for image in images], text=text.rstrip("\n") if answered else text
    )
    ours = adapter.encode(turns, images) if answered else adapter.encode_prompt(turns, images)
    expected = theirs["input_ids"][0]
    if family == "perception_lm":  # its text tokenizer is made without a first token, the template writes it
        assert expected[0] == adapter.tokenizer.bos_token_id
    assert ours.input_ids.tolist() == list(expected)
    pixels = theirs["pixel_values"]
    expected_pixels = torch.cat([torch.as_tensor(np.asarray(one)) for one in pixels])
    assert torch.equal(seen_pixels(adapter, ours), expected_pixels.reshape(-1))
    if family in QWEN:
        assert ours.mm_token_type_ids.tolist() == list(theirs["mm_token_type_ids"][0])


def seen_pixels(adapter: Adapter, sample: Encoded) -> torch.Tensor:
    return adapter.vision_inputs([sample])["pixel_values"].reshape(-1)


def test_pixels_travel_as_bytes_and_become_floats_with_the_batch(adapter):
    images = [picture(0), picture(1, (40, 90))]
    turns = [Turn("user", (0, 1, "Which?")), Turn("assistant", ("None.",))]
    sample = adapter.encode(turns, images)
    theirs = adapter.image_processor(images=images, input_data_format="channels_last")["pixel_values"]
    expected = torch.cat([torch.as_tensor(one) for one in theirs]).reshape(-1)
    assert torch.equal(seen_pixels(adapter, sample), expected)
    assert torch.equal(adapter.collate([sample])["pixel_values"].reshape(-1), expected)
    own, floats = sample.vision["pixel_values"], expected.nbytes
    assert own.dtype == torch.uint8 and own.nbytes == floats // (8 if adapter.needs_token_types else 4)


def test_values_are_scaled_as_the_checkpoint_says(adapter):
    adapter.image_processor.do_normalize = False
    try:
        sample = adapter.encode(chat(), [picture()])
        values = seen_pixels(adapter, sample)
        theirs = adapter.image_processor(images=[picture()], input_data_format="channels_last")[
            "pixel_values"
        ]
        assert torch.equal(values, torch.cat([torch.as_tensor(one) for one in theirs]).reshape(-1))
        assert float(values.min()) >= 0 and float(values.max()) == 1
    finally:
        adapter.image_processor.do_normalize = True


def test_answers_and_the_ends_of_their_turns_are_learnt_and_nothing_else(adapter):
    turns = [*chat(), Turn("user", ("And?",)), Turn("assistant", ("No target.",))]
    end = adapter.end_of_turn
    assert learnt(adapter, turns, [picture()]) == f"It is here: {mask(3, 9)}{end}No target.{end}"
    assert (adapter.encode_prompt(turns[:-1], [picture()]).labels == IGNORE).all()


@pytest.mark.parametrize("answer", ["No target.", "\n\nNo target.", " leading", "", mask(1, 2)])
def test_a_prompt_is_the_beginning_of_the_dialogue_up_to_its_answer(adapter, answer):
    whole = adapter.encode(chat(answer=answer), [picture()])
    prompt = adapter.encode_prompt(chat()[:1], [picture()])
    assert torch.equal(whole.input_ids[: len(prompt)], prompt.input_ids)
    assert (whole.labels[len(prompt) :] == whole.input_ids[len(prompt) :]).all()
    assert (whole.labels[: len(prompt)] == IGNORE).all()


@pytest.mark.parametrize(
    "text", ["A ring.", "naïve 日本 🙂\t\x07", f"a{mask(0, 15)}b{mask(2, 3)}{mask(2, 3)}", "```\n{"]
)
def test_any_text_comes_back(adapter, text):
    labels = adapter.encode(chat(answer=text), [picture()]).labels
    assert adapter.text_of(labels[labels != IGNORE].tolist()) == text


def test_a_dialogue_can_bring_its_own_system_turn(adapter):
    own = adapter.encode([Turn("system", ("Speak of rings.",)), *chat()], [picture()])
    text = adapter.tokenizer.decode(own.input_ids)
    assert text.startswith(adapter.start_of_text + adapter.header("system") + "Speak of rings.")


def test_images_go_where_the_dialogue_names_them(adapter):
    first, second = picture(0), picture(1)
    turns = [Turn("user", (1, "then", 0)), Turn("assistant", ("Yes.",))]
    crossed = adapter.encode(turns, [first, second])
    straight = adapter.encode([Turn("user", (0, "then", 1)), turns[1]], [second, first])
    assert torch.equal(crossed.input_ids, straight.input_ids)
    alone = [adapter.encode(chat(), [image]).vision["pixel_values"] for image in (first, second)]
    assert torch.equal(crossed.vision["pixel_values"], torch.cat(alone[::-1]))
    assert torch.equal(straight.vision["pixel_values"], torch.cat(alone[::-1]))


def test_pil_images_and_arrays_are_the_same(adapter):
    image = picture(4, (60, 50))
    grey = Image.fromarray(image[..., 0])
    one, other = (adapter.encode(chat(), [i]) for i in (image, Image.fromarray(image)))
    assert torch.equal(one.vision["pixel_values"], other.vision["pixel_values"])
    adapter.encode(chat(), [grey])


def test_what_is_too_long_is_refused_and_never_cut(adapter):
    whole = adapter.encode(chat(), [picture()])
    assert len(adapter.encode(chat(), [picture()], max_tokens=len(whole))) == len(whole)
    with pytest.raises(DataError, match=f"has {len(whole)} tokens and at most {len(whole) - 1}") as caught:
        adapter.encode(chat(), [picture()], max_tokens=len(whole) - 1)
    assert caught.value.reason == "too_long"


def test_text_cannot_hold_tokens_of_the_chat_format(adapter):
    for token in adapter.media_tokens:
        with pytest.raises(DataError) as caught:
            adapter.encode(chat(question=f"Where {token}?"), [picture()])
        assert caught.value.reason == "media_token"
    for token in (adapter.end_of_turn, adapter.end_of_text):
        for turns in (chat(question=f"a{token}"), chat(answer=token)):
            with pytest.raises(DataError, match="belongs to the chat format") as caught:
                adapter.encode(turns, [picture()])
            assert caught.value.reason == "control_token"
    pieces = [adapter.end_of_turn[:4], adapter.end_of_turn[4:]]  # parts of one turn that join to a token
    with pytest.raises(DataError):
        adapter.encode([Turn("user", tuple(pieces)), Turn("assistant", ("No.",))], [])


@pytest.mark.parametrize("family", QWEN)
def test_object_phrases_are_content(tmp_path, family):
    adapter = loaded(build(tmp_path, family))
    answer = f"<|object_ref_start|> a ring <|object_ref_end|> {mask(1, 2)} and a star."
    sample = adapter.encode(chat(answer=answer), [picture()])
    ids = [adapter.tokenizer.get_vocab()[token] for token in OBJECT_TOKENS]
    assert all((sample.labels == id_).sum() == 1 for id_ in ids)
    assert adapter.text_of(sample.labels[sample.labels != IGNORE].tolist()) == answer
    assert not set(ids) & set(adapter.suppressed_ids)
    adapter.encode(chat(question=f"Where is {OBJECT_TOKENS[0]} it {OBJECT_TOKENS[1]}?"), [picture()])


def test_object_phrases_are_refused_where_they_would_be_letters(tmp_path):
    adapter = loaded(build(tmp_path, "perception_lm"))
    assert adapter.object_tokens == ()
    for token in OBJECT_TOKENS:
        with pytest.raises(DataError, match="no token of this perception_lm.*--styles words") as caught:
            adapter.encode(chat(answer=f"a {token} b"), [picture()])
        assert caught.value.reason == "object_token"


@pytest.fixture(scope="module", params=EACH_FAMILY)
def speaker(request, tmp_path_factory) -> Adapter:
    """An adapter with the words of the composed rows."""
    folder = tmp_path_factory.mktemp("tiny")
    build_tiny(request.param, folder, vocabulary=MaskVocabulary(NUM_CODES, NUM_LEVELS), texts=TEXTS, seed=0)
    return loaded(folder)


@settings(max_examples=40, deadline=None)
@given(made=st.integers(0, 10**9), style=st.sampled_from(STYLES), turns=st.integers(1, 3))
@pytest.mark.slow
@pytest.mark.numerics
def test_composed_answers_of_all_tasks_and_styles_come_back(speaker, made, style, turns):
    asked = dict.fromkeys(TASKS, 1.0)
    if not speaker.object_tokens and style in ("json", "authors"):
        del asked["gcg"]
    options = Settings(
        num_codes=NUM_CODES, num_levels=NUM_LEVELS, tasks=asked, styles=(style,), turns_per_sample=turns
    )
    done = compose_row(random_row(random.Random(made)), options)
    assert done.samples and not done.rejects
    for row in done.samples:
        spoken = turns_of(row)
        labels = speaker.encode(spoken, [picture()]).labels
        answers = [turn.text for turn in spoken if turn.role == "assistant"]
        stop = speaker.stop_ids[0]
        learnt = labels[labels != IGNORE].tolist()
        ends = [place for place, id_ in enumerate(learnt) if id_ == stop]
        starts = [0, *(end + 1 for end in ends)]
        found = [speaker.text_of(learnt[a:b]) for a, b in zip(starts, ends, strict=False)]
        assert found == answers


def test_every_task_is_among_the_composed_chats():
    options = Settings(num_codes=NUM_CODES, num_levels=NUM_LEVELS, tasks=dict.fromkeys(TASKS, 1.0))
    tasks = {
        row["task"]
        for made in range(40)
        for row in compose_row(random_row(random.Random(made)), options).samples
    }
    assert tasks == set(TASKS)


@pytest.mark.parametrize("text", ["<|mt_start|><|mt_0003|><|mt_end|>", "<|mt_0003|>", "<|mt_0100|>", "<|mt_"])
def test_malformed_words_are_refused(qwen, text):
    with pytest.raises(DataError) as caught:
        qwen.encode(chat(answer=text), [picture()])
    assert caught.value.reason == "malformed_words"


def test_wrong_images_are_refused(qwen):
    cases = [
        ("image_index", chat(), []),
        ("image_index", [Turn("user", ("a",)), Turn("assistant", (0,))], [picture()]),
        ("image", chat(), [picture().astype(np.float32)]),
        ("image", chat(), [picture()[..., 0]]),
        ("image", chat(), [np.zeros((0, 4, 3), np.uint8)]),
    ]
    for reason, turns, images in cases:
        with pytest.raises(DataError) as caught:
            qwen.encode(turns, images)
        assert caught.value.reason == reason


@pytest.mark.parametrize("size_hw", [(2300, 10), (10, 2300), (1, 5000), (7, 4000)])
def test_an_image_that_a_processor_refuses_is_a_fault_of_the_sample(qwen, size_hw):
    with pytest.raises(DataError, match=rf"{size_hw[0]} x {size_hw[1]} pixels.*aspect ratio") as caught:
        qwen.encode(chat(), [picture(0, size_hw)])
    assert caught.value.reason == "processor"
    with pytest.raises(DataError, match="56 x 56, "):
        qwen.encode_prompt([Turn("user", (0, 1, "Which?"))], [picture(), picture(0, size_hw)])


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 900), width=st.integers(1, 900))
def test_an_image_of_any_size_is_read_or_a_fault_of_the_sample(adapter, height, width):
    try:
        assert adapter.encode(chat(), [np.zeros((height, width, 3), np.uint8)]).vision
    except DataError as error:
        assert error.reason == "processor"


def test_a_processor_that_takes_no_image_and_lack_of_memory_are_no_faults_of_a_sample(tmp_path):
    adapter = loaded(build(tmp_path))
    endless = np.lib.stride_tricks.as_strided(np.zeros((1, 1, 3), np.uint8), (2 * 10**6, 10**6, 3), (0, 0, 1))
    with pytest.raises(RuntimeError, match="memory"):
        adapter.encode(chat(), [endless])
    adapter.processor.image_processor.patch_size = 0  # as a mistake in our code or in the folder
    with pytest.raises(ZeroDivisionError):
        adapter.encode(chat(), [picture()])


def test_half_a_character_is_a_fault_of_the_text(qwen):
    with pytest.raises(DataError, match="half a character") as caught:
        qwen.encode(chat(answer="a\ud800b"), [picture()])
    assert caught.value.reason == "text"


def test_an_answer_in_a_prompt_and_an_empty_dialogue_are_refused(qwen):
    with pytest.raises(ValueError, match="must end before the assistant"):
        qwen.encode_prompt(chat(), [picture()])
    with pytest.raises(ValueError, match="at least one turn"):
        qwen.encode([], [])


def test_a_foreign_chat_template_is_refused(tmp_path):
    folder = build(tmp_path)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>", "### "))
    with pytest.raises(CheckpointError, match="chat template of this checkpoint writes '### user"):
        loaded(folder)


def test_an_adapter_is_small_and_picklable(adapter):
    data = pickle.dumps(adapter)
    assert len(data) < 200_000
    one, other = (a.encode(chat(), [picture()]) for a in (adapter, pickle.loads(data)))
    assert torch.equal(one.input_ids, other.input_ids)


def test_batches_are_padded_on_either_side(adapter):
    three = samples(adapter)
    longest = max(map(len, three))
    for side in ("right", "left"):
        batch = adapter.collate(three, side=side)
        for row, sample in enumerate(three):
            real = batch["attention_mask"][row].bool()
            assert real.sum() == len(sample) and real[0 if side == "right" else -1]
            assert torch.equal(batch["input_ids"][row][real], sample.input_ids)
            assert torch.equal(batch["labels"][row][real], sample.labels)
            assert (batch["input_ids"][row][~real] == adapter.pad_id).all()
            assert (batch["labels"][row][~real] == IGNORE).all()
        assert batch["input_ids"].shape == (3, longest)


def test_the_end_of_a_packed_dialogue_does_not_learn_the_beginning_of_the_next(qwen):
    one = qwen.encode(chat(), [picture()])
    eager = Encoded(one.input_ids, one.input_ids, one.mm_token_type_ids, one.vision)
    labels = qwen.pack([eager, eager])["labels"][0]
    assert labels[0] == labels[len(one)] == IGNORE
    assert int((labels[1:] != IGNORE).sum()) == 2 * eager.num_learnt


def test_packing_is_refused_where_it_is_not_known_to_be_free_of_leaks(tmp_path):
    adapter = loaded(build(tmp_path, "perception_lm"))
    with pytest.raises(ConfigError, match="packing is not available for perception_lm"):
        adapter.pack(samples(adapter))
