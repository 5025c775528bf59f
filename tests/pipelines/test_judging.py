"""Judges with a record: what is on it is not asked again, a replay lacks nothing or says what."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines import env
from pipelines.config import located
from pipelines.judging.config import JudgeConfig
from pipelines.judging.judge import Judge
from pipelines.judging.open_judge import open_judge, read_wording
from pipelines.judging.record import Record
from samtok.errors import ConfigError, DataError
from samtok.metrics.judged import Sampling
from samtok.metrics.judged_dlc import DlcWording, dlc
from tests.chat_servers import Said, chat_server, text
from tests.judgements import ask, asks, echo, opened, published, scripted


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(env.STORAGE_RETRY_S, "5")
    monkeypatch.delenv(env.OPENAI_API_KEY, raising=False)


def test_the_published_judgements_of_dam_3b_are_replayed_to_its_numbers(tmp_path: Path):
    expected, masks, replies, _ = published()
    wanted = [one for mask in masks for one in mask.asks()]
    config = JudgeConfig(kind="replay", record=f"{tmp_path}/dam.jsonl")
    name = "Llama-3.1-8B-Instruct"
    keys = Judge(config, None, Record(f"{tmp_path}/empty", writes=False), name=name)
    kept = [{"key": keys.key(one), "judge": name, "reply": replies[one.name]} for one in wanted]
    (tmp_path / "dam.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in kept))
    judge = open_judge(config, record="elsewhere")
    assert judge is not None
    with judge:
        found = dlc(masks, judge.ask(wanted))
        judge.check()
        summary = judge.summary()
    assert found["pos"] == pytest.approx(expected["pos"], abs=5e-11) == pytest.approx(0.5101666667, abs=5e-11)
    assert found["neg"] == pytest.approx(expected["neg"], abs=5e-11) == pytest.approx(0.83, abs=5e-11)
    assert (round(found["avg"], 3), found["misrecognized"]) == (0.670, 8)
    assert (summary["asked"], summary["replayed"], summary["requests"]) == (992, 992, 0)
    assert summary["judge"] == name


def test_a_replay_repeats_what_was_asked_and_names_what_it_lacks(tmp_path: Path):
    with chat_server(echo) as server, opened(server, tmp_path) as judge:
        first = judge.ask(asks(5))
    record = str(tmp_path / "judgements.jsonl")
    before = Path(record).read_bytes()
    replay = open_judge(JudgeConfig(kind="replay", record=record), record="elsewhere")
    assert replay is not None
    with replay:
        assert replay.ask(asks(5)) == first == {f"s{n}": f"reply to prompt of s{n}" for n in range(5)}
        with pytest.raises(DataError, match=r"no judgement of s5 and of 1 more of 7 by judge: ") as caught:
            replay.ask(asks(7))
        assert caught.value.reason == "judgement_missing" and "--judge.kind http" in str(caught.value)
        for changed in (
            {"prompt": "other"},
            {"system": "Be kind."},
            {"sampling": Sampling(temperature=0.1, max_tokens=16)},
            {"images": (np.zeros((2, 3, 3), np.uint8),)},
        ):
            with pytest.raises(DataError, match=r"no judgement of s0 by judge"):
                replay.ask([ask("s0", **changed)])
        assert replay.summary()["prompt_tokens"] == 50
    assert Path(record).read_bytes() == before


def test_failures_on_record_are_failures_of_a_replay(tmp_path: Path):
    refusing = scripted(s1=Said({"error": "no"}, 400))
    with chat_server(refusing) as server, opened(server, tmp_path) as judge:
        assert judge.ask(asks(2))["s1"] is None
    config = JudgeConfig(kind="replay", record=f"{tmp_path}/judgements.jsonl", max_failed=0.5)
    replay = open_judge(config, record="")
    assert replay is not None
    with replay:
        assert replay.ask(asks(2)) == {"s0": "reply to prompt of s0", "s1": None}
        replay.check()
        assert (replay.summary()["failed"], replay.summary()["replayed"]) == (1, 1)


def test_the_judge_of_a_replay_is_named_where_a_record_has_several(tmp_path: Path):
    for model in ("x", "y"):
        saying = scripted(s0=text(f"says {model}"))
        with chat_server(saying) as server, opened(server, tmp_path, model=model) as judge:
            judge.ask(asks(1))
    record = f"{tmp_path}/judgements.jsonl"
    with pytest.raises(ConfigError, match=r"has judgements by x, y; name one with --model") as caught:
        open_judge(JudgeConfig(kind="replay", record=record), record="")
    assert caught.value.owner is not None
    for model in ("x", "y"):
        judge = open_judge(JudgeConfig(kind="replay", record=record, model=model), record="")
        assert judge is not None and judge.ask(asks(1)) == {"s0": f"says {model}"}
    with pytest.raises(ConfigError, match=r"has judgements by none"):
        open_judge(JudgeConfig(kind="replay", record=f"{tmp_path}/nothing.jsonl"), record="")
    assert not (tmp_path / "nothing.jsonl").exists()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"kind": "http"}, "--kind http and --url go together"),
        ({"url": "http://x"}, "--kind http and --url go together"),
        ({"kind": "hf"}, "--kind hf and --folder go together"),
        ({"kind": "replay"}, "--kind replay needs --record"),
        ({"kind": "http", "url": "x"}, "--url must begin with http://"),
        ({"kind": "http", "url": "http://me:pw@x/v1"}, "--url must not hold a user or password"),
        ({"kind": "hf", "folder": "x", "model": "y"}, "--model is for --kind http and replay"),
        ({"max_failed": 1.5}, "--max-failed must be in"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, match):
    with pytest.raises(ConfigError, match=match) as caught:
        JudgeConfig(**settings)
    assert isinstance(caught.value.owner, JudgeConfig)
    assert "--." not in str(located(caught.value, caught.value.owner))


def test_the_kind_none_has_no_judge():
    assert open_judge(JudgeConfig(), record="/nowhere/x") is None


def test_a_wording_is_read_from_a_file(tmp_path: Path):
    path = tmp_path / "wording.json"
    config = JudgeConfig(wording=str(path))
    for content, match in (
        (None, "wording.json does not exist"),
        ("[]", "holds a list, expected an object of texts"),
        ('{"prompt": "x"}', "lacks {caption}, {question}"),
    ):
        if content is not None:
            path.write_text(content)
        with pytest.raises(ConfigError, match=match) as caught:
            read_wording(config, DlcWording)
        assert caught.value.owner is config
    path.write_text('{"prompt": "{caption} {question}"}')
    assert read_wording(config, DlcWording).prompt == "{caption} {question}"
    assert read_wording(JudgeConfig(), DlcWording) == DlcWording()
