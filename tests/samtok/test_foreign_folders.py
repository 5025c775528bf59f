"""Checkpoint folders of other people: nothing in them is run, and what they ask for has limits."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import samtok.mllm.pretrained
from samtok.errors import CheckpointError
from samtok.mllm import chat_template
from samtok.mllm.adapters import load_adapter
from tests.tiny_mllm import build

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def folder(plain, tmp_path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "model"))


def load(folder: Path) -> None:
    load_adapter(folder).load_model(folder)


def put(name: str, *path: str, **values: Any) -> Change:
    """Puts values into a JSON file of the folder, below some keys."""

    def change(folder: Path) -> None:
        body = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        place = body
        for key in path:
            place = place[key]
        place.update(values)
        (folder / name).write_text(json.dumps(body))

    return change


def write(name: str, data: bytes | str) -> Change:
    return lambda folder: (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)


def run_me(folder: Path) -> str:
    """Code that leaves a trace beside the folder."""
    return f"open({str(folder.parent / 'ran')!r}, 'w').write('x')\nclass Evil:\n    from_pretrained = print\n"


HARMLESS: dict[str, Change] = {
    "auto_map of the config": put(
        "config.json",
        auto_map=dict.fromkeys(("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor"), "evil.Evil"),
    ),
    "auto_map of the processor": put("processor_config.json", auto_map={"AutoProcessor": "evil.Evil"}),
    "auto_map of the image processor": put(
        "preprocessor_config.json", auto_map={"AutoImageProcessor": "evil.Evil"}
    ),
    "auto_map of the tokenizer": put(
        "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    ),
    "a foreign tokenizer class": put("tokenizer_config.json", tokenizer_class="EvilTokenizer"),
    "a foreign architecture": put("config.json", architectures=["Evil"]),
    "code of generation": lambda folder: shutil.copytree(folder, folder / "custom_generate", symlinks=True),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_code_in_a_folder_is_never_run(folder, kind):
    (folder / "evil.py").write_text(run_me(folder))
    (folder / "generate.py").write_text(run_me(folder))
    HARMLESS[kind](folder)
    load(folder)
    assert not (folder.parent / "ran").exists()


REFUSED: dict[str, tuple[Change, str]] = {
    "a foreign family": (put("config.json", model_type="evil"), "no adapter for 'evil'"),
    "an unknown processor class": (
        put("processor_config.json", processor_class="Evil"),
        "is a Qwen2",
    ),
    "an unknown image processor": (
        put("processor_config.json", "image_processor", image_processor_type="Evil"),
        "the processor .* cannot be loaded",
    ),
    "a tokenizer that is none": (write("tokenizer.json", "{}"), "cannot be loaded|no mask words"),
    "a processor that is none": (
        write("processor_config.json", "[]"),
        "the processor .* cannot be loaded",
    ),
    "settings that are none": (write("generation_config.json", "[1]"), "the model .* cannot be loaded"),
    "huge vocabulary": (
        put("config.json", "text_config", vocab_size=10**9),
        "the model .* cannot be loaded",
    ),
    "huge width": (put("config.json", "text_config", hidden_size=10**7), "the model .* cannot be loaded"),
    "negative width": (put("config.json", "text_config", hidden_size=-4), "the model .* cannot be loaded"),
    "width of text": (put("config.json", "text_config", hidden_size="x"), "cannot be loaded"),
    "a million layers": (
        put("config.json", "text_config", num_hidden_layers=10**6, layer_types=None),
        "num_hidden_layers 1000000, expected at most 1000",
    ),
    "a million layers of vision": (put("config.json", "vision_config", depth=10**6), "depth 1000000"),
    "an unknown type": (put("config.json", dtype="evil"), "cannot be loaded"),
    "attention of the Hub": (put("config.json", _attn_implementation="evil/kernel"), "code of the Hub"),
    "an adapter": (write("adapter_config.json", '{"peft_type": "LORA"}'), "has an adapter .* Merge it"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_folder_cannot_mean_is_refused(folder, kind):
    change, message = REFUSED[kind]
    change(folder)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_pickled_weights_run_nothing(folder):
    (folder / "model.safetensors").unlink()
    ran = folder.parent / "ran"
    (folder / "pytorch_model.bin").write_bytes(f"cos\nsystem\n(S'touch {ran}'\ntR.".encode())
    with pytest.raises(CheckpointError, match="the model .* cannot be loaded"):
        load(folder)
    assert not ran.exists()


TEMPLATES = {
    "an escape": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    "an error": ("{{ raise_exception('not for you') }}", "not for you"),
    "a text that grows": (
        "{% set n = namespace(x='xxxxxxxx') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "cannot be used",
    ),
}


@pytest.mark.parametrize("kind", TEMPLATES)
@pytest.mark.slow
@pytest.mark.numerics
def test_a_template_that_escapes_or_fills_memory_is_refused(folder, kind):
    template, message = TEMPLATES[kind]
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(CheckpointError, match=message):
        load_adapter(folder)


@pytest.mark.slow
@pytest.mark.numerics
def test_a_template_that_loops_is_ended(monkeypatch):
    monkeypatch.setattr(chat_template, "MAX_CPU_S", 4)
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(CheckpointError, match="it took over 4 s"):
        chat_template.rendered(endless, [], {})


def test_every_loading_of_transformers_says_that_code_is_not_trusted():
    root = Path(samtok.mllm.pretrained.__file__).parents[2]
    calls = re.compile(r"\bAuto\w+\.from_pretrained\((?:[^()]|\([^()]*\))*\)")
    found = [
        call
        for package in ("samtok", "pipelines", "jobs")
        for path in (root / package).rglob("*.py")
        for call in calls.findall(path.read_text())
    ]
    assert len(found) >= 3 and all("trust_remote_code=False" in call for call in found)
