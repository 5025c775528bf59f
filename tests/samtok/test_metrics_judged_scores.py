"""MDVP-Bench and VideoRefer-Bench-D: scores that a judge writes, read and averaged."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samtok.errors import DataError
from samtok.metrics import judged_mdvp as of_mdvp
from samtok.metrics import judged_videorefer as of_videos
from samtok.metrics.judged_mdvp import GROUPS, PHASES, MdvpRegion, mdvp, pairs, phase_of
from samtok.metrics.judged_videorefer import DIMENSIONS, VideoReferItem, parse, videorefer
from samtok.metrics.referring import MODES
from samtok.plots.boxes import numbered_boxes

ANY = settings(max_examples=60, deadline=None)

# Reply; what the public script reads, None for its -1, -1; what strict mode does.
PAIRS = [
    ("8 9", (8, 9), (8, 9)),
    ("8 9\nAnswer 2 is better.", (8, 9), (8, 9)),
    ("8,9", (8, 9), (8, 9)),
    ("8, 9", None, (8, 9)),
    ("8  9", None, (8, 9)),
    ("8.5 7", (8.5, 7), (8.5, 7)),
    ("8 9 both are good", (8, 9), None),
    ("**8 9**", None, (8, 9)),
    ("\n8 9", None, (8, 9)),
    ("8 9\r\nwhy", (8, 9), (8, 9)),
    ("Scores: 8 9", None, None),
    ("8", None, None),
    ("", None, None),
    ("8/9", None, None),
    ("0 9", (0, 9), None),
    ("11 9", (11, 9), None),
    ("-1 -1", (-1, -1), None),
    ("nan 9", None, None),
    ("inf 9", None, None),
    ("8 9 7", (8, 9), None),
]


@pytest.mark.parametrize(("reply", "official", "strict"), PAIRS)
def test_two_scores_are_read(reply, official, strict):
    assert of_mdvp.parse_official(reply) == official
    assert of_mdvp.parse(reply) == strict


@ANY
@given(st.text(alphabet="0123456789., -\nabn*", max_size=20))
def test_any_reply_gives_two_scores_of_the_scale_or_none(reply):
    found = of_mdvp.parse(reply)
    assert found is None or all(1 <= score <= 10 for score in found)
    assert of_mdvp.parse_official(reply) is None or len(of_mdvp.parse_official(reply) or ()) == 2


def region(image: str, phase: str, text: str, predicted: str | None = "said") -> MdvpRegion:
    return MdvpRegion(image_id=image, phase=phase, question="What?", truth=text, predicted=predicted)


def benchmark(images: int = 2, of_each: int = 2) -> list[MdvpRegion]:
    """Regions in the order of the file: Android first."""
    order = ("android", *(phase for phase in PHASES if phase != "android"))
    return [
        region(
            f"{phase}/{image}.png", phase, f"{phase} {image} {number}", f"said of {phase} {image} {number}"
        )
        for phase in order
        for image in range(images)
        for number in range(of_each)
    ]


def test_strict_pairs_join_the_regions_of_an_image():
    regions = [region("a", "web", "one"), region("b", "web", "x"), region("a", "web", "two", None)]
    first, second = pairs(regions)
    assert (first.image_id, first.question) == ("a", "What?")
    assert first.truth == "<Region 1>: one\n<Region 2>: two"
    assert first.predicted == "<Region 1>: said\n<Region 2>:"
    assert second.truth == "<Region 1>: x"


def test_official_pairs_show_the_first_texts_of_the_file_under_the_images_of_each_phase():
    regions = benchmark(images=10, of_each=6)
    found = pairs(regions, mode="official")
    assert len(found) == 60 and len({pair.image_id for pair in found}) == 60
    for phase in PHASES:
        mine = [pair for pair in found if pair.phase == phase]
        assert [pair.truth for pair in mine] == [one.truth for one in regions[:10]]
        assert [pair.predicted for pair in mine] == [one.predicted for one in regions[:10]]
        assert all(pair.image_id.startswith(f"{phase}/") for pair in mine)
    assert len(pairs(regions)) == 60 and pairs(regions)[-1].truth.count("<Region") == 6


def test_each_phase_is_the_ratio_of_its_means_and_columns_are_means_of_phases():
    regions = benchmark(images=2, of_each=1)
    said = {pair.image_id: "5 5" for pair in pairs(regions)}
    said |= {"android/0.png": "4 8", "android/1.png": "4 4", "natural/0.png": "8 2", "natural/1.png": "8 6"}
    found = mdvp(regions, said)
    assert found["phases"]["android"] == {
        "score": 1.5,
        "truth_mean": 4.0,
        "predicted_mean": 6.0,
        "scored": 2,
    }
    assert (found["natural"], found["ocr"], found["multi_panel"], found["screenshot"]) == (0.5, 1, 1, 1.25)
    assert (found["expected"], found["judged"], found["failed"], found["missing"]) == (12, 12, 0, 0)


def test_unread_replies_count_minus_1_officially_and_are_left_out_of_strict_means():
    regions = [region(f"{number}", "natural", "t") for number in range(3)]
    said: dict[str, str | None] = {"0": "6 9", "1": "I cannot.", "2": None}
    strict, official = mdvp(regions, said), mdvp(regions, said, mode="official")
    assert strict["natural"] == 1.5 and strict["phases"]["natural"]["scored"] == 1
    assert official["natural"] == pytest.approx((9 - 1) / (6 - 1))
    for found in (strict, official):
        assert (found["asked"], found["judged"], found["failed"], found["unparsed"]) == (3, 2, 1, 1)
        assert found["ocr"] is found["screenshot"] is None


def test_official_means_are_rounded_to_three_digits():
    regions = [region(f"{number}", "natural", "t") for number in range(3)]
    said = {"0": "7 9", "1": "7 9", "2": "6 8"}
    assert mdvp(regions, said, mode="official")["natural"] == 8.667 / 6.667
    assert mdvp(regions, said)["natural"] == pytest.approx(26 / 20)


def test_means_of_no_use_give_none():
    regions = [region("0", "natural", "t"), region("1", "natural", "t")]
    assert mdvp(regions, {"0": "1 5", "1": "no"}, mode="official")["natural"] is None
    assert mdvp(regions, {"0": None, "1": None})["natural"] is None
    empty = mdvp([], {})
    assert all(empty[name] is None for name in GROUPS) and empty["expected"] == 0


def test_a_region_without_a_description_is_judged_with_an_empty_one_and_told():
    found = mdvp([region("0", "web", "t", None), region("0", "web", "u")], {"0": "9 3"})
    assert (found["missing_regions"], found["missing"], found["asked"]) == (1, 0, 1)


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(ValueError, match="the regions of 0 are of several phases"):
        pairs([region("0", "web", "t"), region("0", "natural", "t")])
    with pytest.raises(ValueError, match="no reply to 0"):
        mdvp([region("0", "web", "t")], {})
    assert [phase_of(name) for name in ("android", "ocr_doc_detailed_caption_box")] == ["android", "ocr_doc"]
    with pytest.raises(DataError, match="begins with none of natural, ocr_doc"):
        phase_of("androids")


def test_the_judge_of_pairs_sees_image_kind_question_and_both_answers_in_order():
    image = np.zeros((4, 5, 3), np.uint8)
    ask = pairs([region("0", "web", "true", "predicted")])[0].ask(image)
    assert ask.name == "0" and ask.images[0] is image and ask.system
    assert "a web page" in ask.prompt and "What?" in ask.prompt
    assert ask.prompt.index("<Region 1>: true") < ask.prompt.index("<Region 1>: predicted")
    assert ask.sampling.temperature == 0


def test_boxes_are_drawn_on_a_dimmed_copy():
    image = np.full((60, 80, 3), 100, np.uint8)
    found = numbered_boxes(image, [(10, 10, 50, 40), None, (0, 0, 79, 59)])
    assert image.max() == image.min() == 100 and found.shape == image.shape
    assert found[10, 30].tolist() == found[40, 30].tolist() == found[0, 40].tolist() == [0, 255, 0]
    assert found[50, 60].tolist() == [80, 80, 80]
    assert (found[12:35, 12:30] == 255).all(axis=-1).any(), "the number"


# ---------------------------------------------------------------- VideoRefer-Bench-D

GOOD = "\n".join(f"{number}. {name}: {number}" for number, name in enumerate(DIMENSIONS.values(), start=1))
ALL = {"sc": 1.0, "ad": 2.0, "td": 3.0, "hd": 4.0}
LESS = {name: score for name, score in ALL.items() if name != "sc"}

# Reply, what is read officially, and strictly.
LINES = [
    (GOOD, ALL, ALL),
    (GOOD.replace(": 1", ": 1."), ALL, ALL),
    (GOOD.replace(": 1", ": 1.5/5"), ALL | {"sc": 1.5}, ALL | {"sc": 1.5}),
    (GOOD.replace("Subject Correspondence", "**Subject Correspondence**"), LESS, ALL),
    (GOOD.replace("Subject Correspondence:", "**Subject Correspondence:**"), LESS, ALL),
    (GOOD.replace("Subject Correspondence", "Subject Correspondence (SC)"), LESS, ALL),
    (GOOD.replace("Subject Correspondence", "SC"), LESS, ALL),
    (GOOD.replace("Subject Correspondence", "Subject match"), LESS, LESS),
    (GOOD.replace("Subject Correspondence", "subject correspondence"), LESS, ALL),
    (GOOD.replace("Subject Correspondence: 1", "Subject Correspondence: good"), LESS, LESS),
    (GOOD.replace(": 1", ": 4.5.1"), {}, LESS),
    (GOOD.replace(": 1", ": ..."), {}, LESS),
    (GOOD.replace(": 1", ": 7"), ALL | {"sc": 7.0}, LESS),
    (f"{GOOD}\n1. Subject Correspondence: 5", ALL | {"sc": 5.0}, ALL | {"sc": 5.0}),
    (f"Here are the scores.\n{GOOD}\nThe dog is right.", ALL, ALL),
    ("", {}, {}),
    ("Subject Correspondence: 4", {}, {}),
]


@pytest.mark.parametrize(("reply", "official", "strict"), LINES)
def test_scores_of_dimensions_are_read(reply, official, strict):
    assert parse(reply, mode="official") == official
    assert parse(reply) == strict


@ANY
@given(st.text(alphabet="123456.:*() \nSubjectCorpndAaL", max_size=60))
def test_any_reply_gives_scores_of_the_scale(reply):
    assert all(0 <= score <= 5 for score in parse(f"{reply}\n{GOOD}").values())
    parse(reply, mode="official")


def items(*predicted: str | None) -> list[VideoReferItem]:
    return [
        VideoReferItem(item_id=str(number), truth="t", predicted=text)
        for number, text in enumerate(predicted)
    ]


@pytest.mark.parametrize("mode", MODES)
def test_dimensions_are_means_over_the_replies_that_have_them(mode):
    half = "1. Subject Correspondence: 5\n2. Appearance Description: 4"
    found = videorefer(items("a", "b", "c"), {"0": GOOD, "1": half, "2": None}, mode=mode)
    assert [found[name] for name in DIMENSIONS] == [3, 3, 3, 4] and found["avg"] == 3.25
    assert found["scored"] == {"sc": 2, "ad": 2, "td": 1, "hd": 1}
    assert (found["asked"], found["judged"], found["failed"], found["unparsed"]) == (3, 2, 1, 1)


def test_an_item_without_a_description_scores_0_or_is_left_out():
    both = items("a", None)
    strict, official = videorefer(both, {"0": GOOD}), videorefer(both, {"0": GOOD}, mode="official")
    assert [strict[name] for name in DIMENSIONS] == [0.5, 1, 1.5, 2]
    assert [official[name] for name in DIMENSIONS] == [1, 2, 3, 4]
    assert strict["missing"] == official["missing"] == 1 and strict["expected"] == 2
    assert not both[1].asks()


def test_items_of_one_video_stay_apart_and_a_second_one_of_an_id_is_refused():
    with pytest.raises(ValueError, match="0 is there twice"):
        videorefer([*items("a"), *items("b")], {"0": GOOD})
    nothing = videorefer([], {})
    assert nothing["avg"] is None and nothing["scored"]["sc"] == 0


def test_the_judge_of_items_is_told_truth_and_prediction_and_sampled():
    (ask,) = VideoReferItem(item_id="3", truth="A cub.", predicted="A cat.").asks()
    assert (ask.name, ask.images) == ("3", ())
    assert ask.prompt == "##Correct answer: A cub.\n##Predicted answer: A cat.\n"
    assert all(heading in (ask.system or "") for heading in DIMENSIONS.values())
    assert ask.sampling == of_videos.SAMPLING
    assert (ask.sampling.temperature, ask.sampling.top_p, ask.sampling.max_tokens) == (0.7, 0.95, 800)
