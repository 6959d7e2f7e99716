"""The recipe from nothing to an exported pair, on text that the test makes itself."""

import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from training import checkpoint, corpus, distil, evaluate, export, samples, shapes, tokenizer, trainer
from training.batches import Packer
from training.llama import LlamaModel
from training.parity import logit_difference, token_difference
from training.schedule import Budget

ROOMS = ["Kitchen", "Hall", "Attic", "Cellar", "Porch", "Study"]
TINY = shapes.Shape(hidden=32, layers=1, heads=1, kv_heads=1, head=32, mlp=32)
SLOTTED = '"HassTurnOn", "arguments": {{"name": "{} Light"}}}}'


def house_request(random: Random) -> str:
    first, second = random.sample(ROOMS, 2)
    listed = "\n".join(f"light.{r.lower()} '{r} Light' = off" for r in (first, second))
    return (
        f"System: You are 'Al'. The current time and date is 9:00 AM on Monday, May 1 2028\n"
        f"Devices:\n{listed}\nUser: light up the {first.lower()} {random.randint(1, 999)} times\n"
        f'Assistant: on it.\nCall: {{"name": {SLOTTED.format(first)}\n'
        f"Result: Success\nAssistant: the {first.lower()} light is on."
    )


def story(random: Random) -> str:
    told = " ".join(f"The {random.choice(ROOMS).lower()} was {random.randint(1, 99)}." for _ in range(40))
    return f"# A house\nOnce upon a time. {told}"


def write(path: Path, texts: Iterator[str]) -> None:
    with lzma.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    random = Random(1)
    write(folder / "home_assistant_requests_train.jsonl.xz", (house_request(random) for _ in range(120)))
    write(folder / "storybooks_ccby_en.jsonl.xz", (story(random) for _ in range(60)))
    return folder


@pytest.fixture(scope="module")
def work(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    tokenizer.main(data=data, work=folder, entries=400)
    corpus.store(data, folder)
    return folder


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("target", "draft"):
        monkeypatch.setitem(shapes.SHAPES, name, TINY)


def test_the_split_is_disjoint_and_the_same_every_time(data: Path) -> None:
    train, held = corpus.documents(data, "train"), corpus.documents(data, "held")
    assert train == corpus.documents(data, "train")
    for name in ("house", "storybooks"):
        assert held[name]
        assert not set(held[name]) & set(train[name])
    whole = corpus.documents(data, None)
    assert len(whole["storybooks"]) == len(train["storybooks"]) + len(held["storybooks"])


def test_batches_are_full_and_resume_where_they_stopped(work: Path) -> None:
    domains = corpus.loaded(work, "train")
    straight, stopped = Packer(domains, 1_024, 5), Packer(domains, 1_024, 5)
    for step in range(3):
        assert straight.batch(step).ids.size == 1_024
        stopped.batch(step)
    resumed = Packer(domains, 1_024, 5)
    resumed.restore(stopped.state())
    assert (resumed.batch(3).ids == straight.batch(3).ids).all()


@pytest.mark.usefixtures("tiny")
def test_from_nothing_to_a_pair_that_loads(data: Path, work: Path, tmp_path: Path) -> None:
    trainer.main(work=work, steps=4, batch_tokens=1_024)
    trainer.main(work=work, steps=6, batch_tokens=1_024)
    assert checkpoint.load(work / "target.pt").step == 6
    samples.main(work=work, count=12)
    distil.main(work=work, steps=4, batch_tokens=1_024)
    export.main(work=work, out=tmp_path)

    again = trainer.Plan("target", 400, tmp_path / "again.pt", Budget(None, 1), warm=tmp_path / "target")
    begun = trainer.Trainer(again, Packer(corpus.loaded(work, "train"), 1_024, 1), trainer.corpus_loss)
    exported = load_file(tmp_path / "target" / "model.safetensors")
    assert all((begun.model.state_dict()[name] == w.float()).all() for name, w in exported.items())

    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert set(manifest["models"]) == {"target", "draft"}
    assert manifest["vocabulary"]["stop_ids"] == [0, 1]
    assert all((tmp_path / name).stat().st_size == f["bytes"] for name, f in manifest["files"].items())

    assert AutoTokenizer.from_pretrained(tmp_path / "target").chat_template
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "target")
    assert model.generation_config.eos_token_id == [1, 0]
    for name in ("target", "draft"):
        llama = LlamaModel(tmp_path / f"{name}.gguf")
        assert llama.stop_ids() == [0, 1]
        assert token_difference(tmp_path / name, llama) == 0
        assert logit_difference(tmp_path / name, llama) < 0.05
        llama.close()

    figures = evaluate.Evaluation(tmp_path, "draft", 1).domain(
        "house", corpus.documents(data, "held")["house"], most=100
    )
    assert 0 <= figures["house"]["accepted_t1"] <= 1
    assert figures["house, answers"]["tokens"] > 0
