"""Every command that README and docs print is run: at smoke size, or as a dry run on folders built for it.

The bare lines of the README are submitted to one Ray head, in their order, as a reader would. Their results
and some links to them are then the folders that the other lines name; ``s3://`` stands for such a folder.
"""

import contextlib
import importlib
import io
import json
import os
import pickle
import runpy
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.compose_dialogues import main as compose_dialogues
from jobs.evaluate_mllm import main as evaluate_mllm
from jobs.tokenize_corpus import main as tokenize_corpus
from pipelines.ingestion.synthetic.config import ShapesConfig
from pipelines.ingestion.synthetic.corpus import make_shapes
from samtok.shapes import WorldConfig, make_scene
from samtok.words import format_words
from tests import printed
from tests.printed import JOBS, PAGES, README, ROOT, Command
from tests.ray_head import BIN, RayHead
from tests.videos import revos, sav_masks, videorefer, write, ytvos

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PRINTED = [command for page in PAGES for command in printed.commands(page)]
BARE = [command for command in printed.commands(README) if command.job in JOBS and not command.flags]
SUBMITTED = {command.job for command in BARE if command.is_submitted}
"""Jobs that the README prints with ``ray job submit`` and no flags; test_submit.py submits them."""
OWN = [command for command in PRINTED if command.where.startswith("docs/guide/own-data.md")]
"""Lines of which each needs what the ones before have made, so they are run, in order."""
REST = [command for command in PRINTED if command not in OWN]
DRY = [command for command in REST if command.job in JOBS and command not in BARE]
OTHERS = [command for command in REST if not command.job]

NOT_RUN = {"make", "source", "mlflow", "ray", "git"}
"""Targets are run by CI, ``ray start`` by this test's head; the server of MLflow does not end by itself."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where relative places are, of submitted jobs and of the others."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def head(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    with RayHead(tmp_path_factory.mktemp("head"), env={"SAMTOK_HOME": str(home)}) as head:
        yield head


def submitted(head: RayHead, command: Command, *more: str) -> str:
    """Submits the job of a command and returns its output."""
    words = ["python", f"jobs/{command.job}.py", *local(command), *more]
    code, output = head.submit(words, working_dir=command.takes_code_along, timeout_s=400)
    assert code == 0, output[-4000:]
    return output


def local(command: Command) -> list[str]:
    """Returns the flags of a command with folders in place of objects on S3, and an empty one for --out."""
    flags = [word.replace("s3://", "") for word in command.flags]
    return [f"new/{flag}" if before == "--out" else flag for before, flag in pairwise(["", *flags])]


# ---------------------------------------------------------------- the README's own


TWINS = {"grpo_gcg"}
"""Jobs that do what ``grpo_gres`` does, with other prompts."""


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(line, marks=[pytest.mark.long] * (line.job in TWINS))
        for line in BARE
        if line.job not in SUBMITTED
    ],
    ids=str,
)
def test_a_bare_line_of_the_readme_submitted(head, home, command: Command):
    output = submitted(head, command)
    assert "no flags: running --preset smoke" in output
    out = Path([line for line in output.splitlines() if line.startswith("out ")][-1].split()[-1])
    config = json.loads((out / "config.json").read_text())
    if command.job == "extend_mllm":  # whose config.json is the model's
        config = json.loads((out / "lineage.json").read_text())["config"]
    assert out.is_relative_to(home) and config["out"] == str(out)


def test_the_submitted_jobs_are_in_the_database(home):
    with sqlite3.connect(home / "runs/mlflow.db") as database:
        states = {state for (state,) in database.execute("select status from runs")}
    assert states == {"FINISHED"}


@pytest.mark.parametrize("command", [line for line in DRY if line.where.startswith("README")], ids=str)
def test_a_line_of_the_readme_with_places_submitted(head, world, command: Command):
    assert "nothing was written" in submitted(head, command, "--dry-run")


def test_the_python_of_the_readme():
    """The first block with a synthetic image; of the second the names, since its files are published ones."""
    scene = make_scene(0, 1, WorldConfig())
    masks = [shape.mask for shape in scene.objects]
    names: dict[str, Any] = {"image": scene.image, "masks": masks}
    first, second = (block.text for block in printed.blocks(README) if block.language == "python")
    exec(first, names)
    assert names["again"].shape == (len(masks), *scene.image.shape[:2])
    assert names["parse_words"](names["text"], num_codes=256) == [tuple(names["codes"][0].tolist())]
    exec(second.partition("\n\n")[0], {})


# ---------------------------------------------------------------- all others


@pytest.fixture(scope="module")
def world(home: Path) -> Path:
    """The folders that printed lines name, below ``home``."""
    _embedded(home)
    build(home)
    return home


def build(home: Path) -> None:
    """Makes the folders out of the embedded corpora and of what ships."""
    made, weights = home / "runs/embedded", ROOT / "samtok/weights"
    copies = {
        "data/coco/val2017": made / "shapes/val",
        "data/coco/train2017": made / "shapes/val",
        "data/entityseg": made / "shapes/val",
        "chats/grefcoco": made / "gres-train/chats",
        "chats/grefcoco-val": made / "gres-val/chats",
        "chats/mix": made / "gres-train/chats",
        "chats/granf": made / "gcg-train/chats",
        "models/tokenizer/final": weights / "tour",
        "models/qwen-words": weights / "tour-mllm",
        "models/qwen-sft/final": weights / "tour-mllm",
        "models/Qwen2.5-VL-3B-Instruct": weights / "tour-mllm",
    }
    for place, source in copies.items():
        shutil.copytree(source, home / place)
    objects = made / "shapes/annotations/instances_val.json"
    for place in (
        "coco/annotations/instances_val2017",
        "coco/annotations/instances_train2017",
        "entityseg/val",
    ):
        (home / f"data/{place}.json").parent.mkdir(exist_ok=True)
        shutil.copy(objects, home / f"data/{place}.json")
    for place, more in {
        "sa1b": {"format": "sa1b"},
        "own": {"format": "masks"},
        "own-val": {"format": "masks", "first_index": 100},
        "coco2017": {"format": "panoptic", "split": "val2017"},
        "cityscapes": {"format": "cityscapes"},
        "cityscapes-polygons": {"format": "cityscapes_polygons"},
        "ReasonSeg": {"format": "reasonseg"},
        "pixelweb_100k": {"format": "pixelweb", "split": "annotated"},
        "sav": {"format": "sav"},
        "mevis": {"format": "mevis"},
        "gar/Fine-Grained-Dataset": {"format": "gar"},
        "segllm": {"format": "segllm"},
        "regions": {"format": "dam"},
    }.items():
        assert make_shapes(ShapesConfig(out=str(home / "data" / place), num_images=8, **more)) == 0
    for place, files in {
        "sav_val": sav_masks,
        "ReVOS": revos,
        "rvos": ytvos,
        "videorefer": videorefer,
    }.items():
        write(home / "data" / place, files())
    _asked(home)
    for own in (home / "data/own", home / "data/own-val"):
        (own / "images").mkdir()
        (own / "train").rename(own / "images/train")
    (home / "models/sam2.1_hiera_large.pt").write_bytes(b"")
    words = format_words((1, 2), num_codes=256)
    for name, lines in {
        "replies": [{"truth": f"It is {words}.", "reply": f"<think>a</think><answer>{words}</answer>"}],
        "thoughts": [{"sample_id": "x", "reply": f"<think>a</think><answer>{words}</answer>"}],
        "chats": [{"messages": [{"role": "user", "content": "<image>Which?"}], "images": ["1.jpg"]}],
    }.items():
        (home / f"data/{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    row = {"images": [{"bytes": b"", "path": "1.jpg"}], "problem": ["<image>Which?"], "answer": words}
    pq.write_table(pa.Table.from_pylist([row]), home / "data/mix_gres8k_ver4k_train.parquet")
    psg = {"categories": ["circle", "ring"], "predicates": ["above", "below"], "stuff": ["ring"]}
    (home / "data/psg.json").write_text(json.dumps(psg))
    shutil.copytree(ROOT / "infra/mixtures", home / "infra/mixtures")
    (home / "data/refcoco").mkdir()
    shutil.copy(home / "data/segllm/instances.json", home / "data/refcoco/instances.json")
    _regions(home / "data")
    _made_here(home)


def _regions(data: Path) -> None:
    """Makes the layouts of regions with texts out of the captions of DAM's."""
    images = data / "regions/train"
    for place in ("coco/unlabeled2017", "mdvp/data/android/images", "dlc/images"):
        shutil.copytree(images, data / place)
    found = [
        one for own in json.loads((data / "regions/annotations.json").read_text()).values() for one in own
    ]
    lines, listed, dlc, names = [], [], [], sorted({Path(one["image"]).name for one in found})
    for index, one in enumerate(found):
        name, height, width = Path(one["image"]).name, *one["mask_rle"]["size"]
        place, mask = {"image_path": f"unlabeled2017/{name}"}, one["mask_rle"]
        lines.append({**place, "idx": index, "segmentation": mask, "caption": one["caption"], "class_id": 4})
        listed.append({"image_path": f"android/images/{name}", "mask_rle": mask, "caption": one["caption"]})
        dlc.append({"id": index, "image_id": names.index(name), "segmentation": mask})
    sizes = {"height": height, "width": width}
    pictures = [{"id": index, "file_name": name, **sizes} for index, name in enumerate(names)]
    question = {"question": "Is it there?", "choices": [["yes", 1]], "type": "positive"}
    files = {
        "groundingsuite/GroundingSuite-Eval.jsonl": "".join(f"{json.dumps(line)}\n" for line in lines),
        "mdvp/annotations/mdvp_caption_mask.json": json.dumps(listed),
        "dlc/annotations.json": json.dumps({"images": pictures, "annotations": dlc, "categories": []}),
        "dlc/qa.json": json.dumps({str(index): [question] for index in range(len(dlc))}),
        "dlc/class_names.json": "{}",
    }
    for name, text in files.items():
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text(text)
    (data / "dam/SAM").mkdir(parents=True)
    with tarfile.open(data / "dam/SAM/000000.tar", "w") as archive:
        for name in names:
            own = [one for one in found if Path(one["image"]).name == name]
            for suffix, content in (("jpg", (images / name).read_bytes()), ("pickle", pickle.dumps(own))):
                info = tarfile.TarInfo(f"{Path(name).stem}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def _asked(home: Path) -> None:
    """Makes questions about the first object of ``data/coco``, and about a box in its image."""
    corpus = json.loads((home / "data/coco/annotations/instances_train2017.json").read_bytes())
    mark = corpus["annotations"][0]
    (image,) = (one for one in corpus["images"] if one["id"] == mark["image_id"])
    name, question = image["file_name"], "Which is it?"
    about = {"filename": name, "id": 1, "height": image["height"], "width": image["width"]}
    box = {"box_id": 1, "name": "it", "x": 0, "y": 0, "width": 9, "height": 9}
    pair = {"qa_id": 1, "question": question, "answer": 1}
    pointed = {"boxes": [box], "images": [{"filename": name, "split": "train", "qa_pairs": [pair]}]}
    said = {"ref_exp": "it", "questions": [], "answers": [], "ref_bboxes": [0, 0, 9, 9]}
    for place, made in {
        "LISA_Plus_Instance_Seg/data.json": [
            {"img_path": name, "ID": [str(mark["id"])], "English Question": question}
        ],
        "visual7w/dataset_v7w_pointing.json": pointed,
        "copsref/data.json": {
            "refs": [{"image_id": 1, "box": [0, 0, 9, 9], "expression": "it", "split": "train"}]
        },
        "invig/invig21k_train_anns.jsonl": about | {"ann": said},
    }.items():
        (home / "data" / place).parent.mkdir()
        (home / "data" / place).write_text(json.dumps(made))
    for folder in ("visual7w/images", "invig/invig21k_imgs", "copsref/images"):
        shutil.copytree(home / "data/coco/train2017", home / "data" / folder)
    shutil.copy(home / "data/coco/train2017" / name, home / "data/copsref/images/1.jpg")


def _made_here(home: Path) -> None:
    """Makes corpora of words with an IoU of every mask, an evaluation with answers that are wrong, and one
    beside that of ``smoke``."""
    here = ["--workers", "0", "--tracking", "off", "--out"]
    for name, reader, file in (("gres-train", "refer", "grefs.json"), ("gcg-train", "granf", "granf.json")):
        shapes = home / f"runs/embedded/{name}/shapes"
        corpus = ["--corpus.reader", reader, "--corpus.source", f"{shapes}/{file}"]
        words = [*corpus, "--corpus.images", f"{shapes}/train", "--tokenizer", "tour", "--reconstruct", "1"]
        out = home / "words" / {"refer": "grefcoco"}.get(reader, reader)
        assert tokenize_corpus([*words, *here, str(out)]) == 0
    asked = ["--preset", "smoke", "--chats", str(home / "chats/grefcoco"), "--limit", "32"]
    assert evaluate_mllm([*asked, *here, str(home / "runs/gres")]) == 0
    shutil.copytree(home / "runs/evaluation", home / "runs/free")


def _embedded(home: Path) -> None:
    """Makes what no line before has made, by naming it."""
    made, here = home / "runs/embedded", ["--workers", "0", "--tracking", "off"]
    with contextlib.chdir(home):
        for name in ("gres-train", "gres-val", "gcg-train"):
            if not (made / name).exists():
                words = ["--words", f"runs/embedded/{name}/words", "--out", f"runs/from-{name}"]
                assert compose_dialogues([*words, "--tasks", name.partition("-")[0], *here]) == 0
        for job, out in ((tokenize_corpus, "words"), (evaluate_mllm, "evaluation")):
            if not (home / "runs" / out).exists():
                assert job(["--preset", "smoke", *here]) == 0


@pytest.mark.parametrize("command", DRY, ids=str)
def test_a_printed_job_line_as_a_dry_run(world, command: Command, monkeypatch, capsys):
    monkeypatch.chdir(world)
    flags = local(command) or ["--preset", "smoke"]  # which a job without flags runs
    main = runpy.run_path(str(ROOT / "jobs" / f"{command.job}.py"))["main"]
    code = main([*flags, "--dry-run"])
    output = capsys.readouterr()
    assert code == 0, output.err[-2000:]


SMALL = {
    "train_tokenizer": ["--steps", "4", "--model", "tiny", "--quantizer.num-codes", "8"],
    "compose_dialogues": ["--min-iou", "0"],
    "tokenize_corpus": ["--workers", "0"],
    "evaluate_tokenizer": ["--workers", "0"],
}
"""Flags that make a line of the page about data of one's own short."""


def test_the_page_of_ones_own_data_is_run_in_order(head, world, monkeypatch):
    monkeypatch.chdir(world)
    for command in OWN:
        program, *flags = command.words[1:] if command.words[1] != "-m" else command.words[2:]
        flags += [*SMALL[command.job], "--tracking", "off"] if command.job else []
        if command.job == "train_tokenizer":  # on a Ray of its own
            words = [sys.executable, str(ROOT / program), *flags]
            done = subprocess.run(words, cwd=world, env=head.env, capture_output=True, text=True, check=False)
            assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
            continue
        if command.job:
            main = runpy.run_path(str(ROOT / program))["main"]
        else:  # it may be imported already, and is not executed a second time
            main = importlib.import_module(program).main
        assert main(flags) == 0, command
    made = {path.name for path in (world / "runs/own").iterdir()}
    assert made >= {"index.html", "before", "tokenizer", "after", "words", "chats", "coco", "dataset"}


@pytest.mark.parametrize("command", OTHERS, ids=str)
def test_another_printed_command(head, world, command: Command):
    program = command.words[0]
    if program in NOT_RUN:
        assert program == "source" or shutil.which(program, path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
        return
    assert program == "python", command
    words, where = list(command.words[1:]), world
    if words[1].startswith("tests.benchmarks"):  # they are in the checkout, and run for minutes
        words, where = [*words[:2], "--help"], ROOT
    done = subprocess.run(
        [sys.executable, *words], cwd=where, env=head.env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
