"""What a chat model forgets, with and without replay, by the steps of the tutorial.

    python benchmarks/keep_chat_model.py MODEL --folder work    # the runs; continues where it was
    python benchmarks/keep_chat_model.py MODEL --folder work --tables docs/lab/tables/keep-chats

MODEL is a folder or id of SmolLM2-135M-Instruct. The runs use the commands and classes of
docs/tutorials/keep-a-chat-model.md: `lethe pool`, `lethe score`, `lethe compare`, `lethe mix`, and
`Rehearsal` inside trl's SFTTrainer. Chats are service dialogues of BIG-bench
(gem/schema_guided_dialog), one per dialogue. Arms, each with LoRA and with full fine-tuning:

- `none`: no replay;
- `mix`: the chats and half as many replayed examples, drawn at random (`lethe mix`);
- `mix_lost`: the same, drawn by what `none` of the same seed lost (`lethe mix --lost`);
- `rehearsal`: KL to the base model on the examples of `mix`, as often as `mix` replays them;
- `prompt`: KL to the base model at eight random prompt positions per chat, without a pool;
- `prompt_all`: the same at all prompt positions.

Every run is a process of its own, so that its memory can be measured, and leaves one file of losses
per pool and one JSON file. A run that has its JSON file is not repeated.
"""

import argparse
import hashlib
import json
import multiprocessing
import random
import re
import resource
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

ARMS = ("none", "mix", "rehearsal", "prompt", "mix_lost", "prompt_all")
METHODS = ("lora", "full")
SEEDS = (0, 1, 2)
TRAINING_CHATS = 80
TEST_CHATS = 30
# Words of the longest chat.
LONGEST = 80
STEPS = 20
BATCH = 4
MAX_TOKENS = 160
# Tokens of the longest text that is scored.
SCORED_TOKENS = 128
RATIO = 0.5
LEARNING_RATE = {"lora": 1e-3, "full": 1e-4}
# Which arm's data and which options of Rehearsal.attach an arm has.
REHEARSALS: dict[str, dict[str, Any]] = {
    "rehearsal": {"weight": 4, "objective": "kl"},
    "prompt": {"prompt_kl": 1, "prompt_kl_positions": 8},
    "prompt_all": {"prompt_kl": 1},
}
POOL = """\
seed: 0
sources:
  bigbench: {kind: bigbench}
  python: {kind: stdlib}
  chats: {kind: bigbench, upstream_as: pairs}
upstream:
  examples: 160
  uneven: true
  heldout: 0.4
  words: 32
  corpus_words: 40000
  domains:
    wikipedia: bigbench:squad_shifts/new_wiki_v1.0.json
    reviews: bigbench:squad_shifts/amazon_reviews_v1.0.json
    dialogue: bigbench:topical_chat
    code: python:all
    chats: chats:hhh_alignment/helpful
"""
# The fine-tune's own test chats, as a pool of their own.
TEST_POOL = """\
seed: 0
sources:
  chats: {{kind: files, folder: "{folder}", format: chat}}
upstream:
  examples: {count}
  heldout: 0.25
  domains: {{new: "chats:test.jsonl"}}
"""
# SmolLM2's chat template with marks around the assistant's turns, which trl needs for
# assistant_only_loss. Its text is the same.
TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by "
    "Hugging Face<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>' + '\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Run:
    """One fine-tune of the comparison, and its files."""

    root: Path
    method: str
    arm: str
    seed: int

    @property
    def folder(self) -> Path:
        """Folder of the run's files."""
        return self.root / f"{self.method}-{self.arm}-{self.seed}"

    @property
    def record(self) -> Path:
        """The file that is written last."""
        return self.folder / "run.json"

    @property
    def identity(self) -> dict[str, Any]:
        """Method, arm and seed, as columns of the tables."""
        return {"method": self.method, "arm": self.arm, "seed": self.seed}

    def sibling(self, arm: str) -> "Run":
        """The run of another arm with the same method and seed."""
        return Run(self.root, self.method, arm, self.seed)


def service_chats() -> Iterator[dict[str, Any]]:
    """One chat per dialogue: the longest beginning of it that is short enough."""
    from lethe.config.data_settings import BigBenchSource
    from lethe.data.bigbench import cached_extract, package_of, read_bigbench
    from lethe.files import cache_folder

    archive = cached_extract(package_of(BigBenchSource(kind="bigbench")), Path(cache_folder()))
    dialogues: dict[str, dict[str, Any]] = {}
    for example in read_bigbench(archive, "gem/schema_guided_dialog"):
        facts, _, talk = example.prompt.partition("The conversation so far has been for following:")
        turns = re.findall(r'(user|response): "(.*?)"\.(?= |$)', talk)
        roles = [role for role, _ in turns]
        alternating = [("user", "response")[number % 2] for number in range(len(roles))]
        words = len(example.prompt.split()) + len(example.answer.split())
        if not roles or roles != alternating or roles[-1] != "user" or words > LONGEST:
            continue
        messages = [{"role": "system", "content": facts.strip()}]
        for role, text in turns:
            messages.append({"role": "user" if role == "user" else "assistant", "content": text})
        messages.append({"role": "assistant", "content": example.answer})
        dialogues[turns[0][1]] = {"messages": messages}
    yield from dialogues.values()


def prepare(model: str, root: Path, threads: int) -> None:
    """Writes chats and pools, and scores the base model on both pools."""
    root.mkdir(parents=True, exist_ok=True)
    if not (root / "train.jsonl").exists():
        chats = list(service_chats())
        random.Random(0).shuffle(chats)
        write_lines(root / "test.jsonl", chats[:TEST_CHATS])
        write_lines(root / "train.jsonl", chats[TEST_CHATS : TEST_CHATS + TRAINING_CHATS])
        (root / "template.jinja").write_text(TEMPLATE, "utf-8")
        (root / "pool.yaml").write_text(POOL, "utf-8")
        text = TEST_POOL.format(folder=root, count=TEST_CHATS)
        (root / "test.yaml").write_text(text, "utf-8")
    for name in ("pool", "test"):
        call("pool", root / f"{name}.yaml", "-o", root / f"{name}.parquet")
        score_base(model, root, name=name, dtype="autocast", threads=threads)


def score_base(model: str, root: Path, *, name: str, dtype: str, threads: int) -> None:
    """Scores the base model on a pool; a file that is there already is left as it is."""
    output = f"base-{name}.parquet" if dtype == "autocast" else f"base-{name}-{dtype}.parquet"
    call(
        *("score", model, "--pool", root / f"{name}.parquet", "-o", root / output),
        *("--max-tokens", SCORED_TOKENS, "--dtype", dtype, "--threads", threads),
    )


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Writes records as JSONL."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")


def call(*arguments: Any) -> None:
    """Runs a verb of the command `lethe`.

    Raises
    ------
    SystemExit
        If it fails.
    """
    from lethe.cli.application import main as lethe

    code = lethe([str(argument) for argument in arguments])
    if code:
        raise SystemExit(code)


def training_file(run: Run) -> Path:
    """The rows that a run trains on; mixes them if the arm needs it."""
    if run.arm not in ("mix", "mix_lost"):
        return run.root / "train.jsonl"
    folder = run.folder / "mixed"
    if not (folder / "trl.yaml").exists():
        shutil.rmtree(folder, ignore_errors=True)
        lost = ()
        if run.arm == "mix_lost":
            lost = ("--lost", run.sibling("none").folder / "lost.parquet")
        call(
            *("mix", run.root / "train.jsonl", "--pool", run.root / "pool.parquet", *lost),
            *("--ratio", RATIO, "--seed", run.seed, "--for", "trl", "-o", folder),
        )
    return folder / "train_with_replay.jsonl"


def train(run: Run, model: str) -> dict[str, Any]:
    """Fine-tunes as the tutorial's script does, and saves the model or the adapter."""
    from datasets import load_dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from lethe.integrations import Rehearsal

    data = load_dataset("json", data_files=str(training_file(run)), split="train")
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(run.folder / "checkpoints"),
            num_train_epochs=1,
            per_device_train_batch_size=BATCH,
            learning_rate=LEARNING_RATE[run.method],
            warmup_steps=STEPS // 10,
            max_length=MAX_TOKENS,
            assistant_only_loss=True,
            chat_template_path=str(run.root / "template.jinja"),
            bf16=True,
            gradient_checkpointing=False,
            use_cpu=True,
            save_strategy="no",
            logging_steps=5,
            disable_tqdm=True,
            report_to=[],
            seed=run.seed,
        ),
        train_dataset=data,
        peft_config=lora if run.method == "lora" else None,
    )
    rehearsal = None
    if run.arm in REHEARSALS:
        # The examples of the random mix, each as often as there.
        replay = None
        if run.arm == "rehearsal":
            replay = run.sibling("mix").folder / "mixed" / "replay.parquet"
        rehearsal = Rehearsal.attach(trainer, replay, **REHEARSALS[run.arm])
    wall = time.perf_counter()
    processor = time.process_time()
    trainer.train()
    facts = {
        "steps": trainer.state.global_step,
        "rows": len(data),
        "train_seconds": time.perf_counter() - wall,
        "train_processor_seconds": time.process_time() - processor,
        "peak_gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "log": trainer.state.log_history,
        "rehearsal": None if rehearsal is None else rehearsal.history,
    }
    if rehearsal is not None:
        rehearsal.detach()
    trainer.save_model(str(run.folder / "model"))
    return facts


def divergence(run: Run, model: str) -> list[float]:
    """Mean KL(base || model) of each example of the pool's held-out part, in nats."""
    from lethe.config.model_settings import Scoring
    from lethe.data.examples import read_upstream
    from lethe.engine import models
    from lethe.engine.reader import Reader
    from lethe.engine.teacher import LiveTeacher, has_sliceable_head, mean_divergences
    from lethe.measure.score_pool import ModelToScore

    scoring = Scoring(max_tokens=SCORED_TOKENS, dtype="autocast", tokens_per_batch=2048)
    trained = run.folder / "model"
    if run.method == "lora":
        to_score = ModelToScore(card=models.card(model), adapter=trained)
    else:
        to_score = ModelToScore(card=models.card(str(trained)), adapter=None)
    reader = to_score.load(scoring, 0)
    base = Reader.load(models.card(model), scoring)
    examples = []
    for example in read_upstream(run.root / "pool.parquet"):
        if example.split == "heldout":
            examples.append(example.example)
    tokens = base.tokens(examples).examples
    teacher = LiveTeacher(base.model, has_sliceable_head(base.model, tokens[0]))
    with models.autocast_for(reader.model, scoring.dtype):
        return mean_divergences(reader.model, teacher, tokens, scoring.budget).tolist()


def measure(run: Run, model: str, threads: int) -> None:
    """Scores the trained model on both pools, and compares it with the base."""
    trained = run.folder / "model"
    trained_model = (model, "--adapter", trained) if run.method == "lora" else (trained,)
    for name in ("pool", "test"):
        base = run.root / f"base-{name}.parquet"
        after = run.folder / f"after-{name}.parquet"
        call(
            *("score", *trained_model, "--pool", run.root / f"{name}.parquet", "--base", base),
            *("-o", after, "--threads", threads),
        )
    call(
        *("compare", run.root / "base-pool.parquet", run.folder / "after-pool.parquet"),
        *("--pool", run.root / "pool.parquet", "-o", run.folder / "lost.parquet"),
    )


def carry_out(run: Run, model: str, threads: int) -> None:
    """One run from training to its record."""
    import torch

    torch.set_num_threads(threads)
    run.folder.mkdir(parents=True, exist_ok=True)
    facts = train(run, model)
    measure(run, model, threads)
    facts["heldout_kl"] = divergence(run, model)
    # Full models take half a gigabyte each.
    shutil.rmtree(run.folder / "model")
    part = run.record.with_suffix(".part")
    part.write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    part.rename(run.record)


def runs_of(root: Path) -> list[Run]:
    """All runs, a seed after the other; `none` and `mix` come before the arms that need them."""
    runs = []
    for seed in SEEDS:
        for arm in ARMS:
            for method in METHODS:
                runs.append(Run(root, method, arm, seed))
    return runs


def facts_of(record: dict[str, Any]) -> dict[str, Any]:
    """The record of a run with its last losses in place of its logs."""
    logs = ("log", "rehearsal")
    facts = {name: value for name, value in record.items() if name not in logs}
    last = record["rehearsal"][-1] if record["rehearsal"] else {}
    facts["train_loss"] = record["log"][-1].get("train_loss")
    facts["last_replay_kl"] = last.get("replay/kl")
    facts["last_prompt_kl"] = last.get("replay/prompt_kl")
    return facts


def losses_by_text(run: Run, heldout_kl: list[float], splits: "pd.Series") -> "list[pd.DataFrame]":
    """Losses of a run on both pools, one line per text; `splits` holds the split by example id."""
    import pandas as pd

    from lethe.matrix.rows import read_row

    frames = []
    for name in ("pool", "test"):
        row = read_row(run.folder / f"after-{name}.parquet")
        frame = pd.DataFrame(
            {
                **run.identity,
                "example_id": row.example_ids,
                "split": "new" if name == "test" else splits.loc[row.example_ids].to_numpy(),
                "loss_before": row.loss_before,
                "loss_after": row.loss_after,
                "tokens": row.n_tokens,
                "kl": float("nan"),
            }
        )
        if name == "pool":
            frame.loc[frame["split"] == "heldout", "kl"] = heldout_kl
        frames.append(frame)
    return frames


def write_tables(root: Path, target: Path, model: str) -> None:
    """Writes losses by text and facts by run, with what made them, as small parquet files."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    from lethe.engine import models
    from lethe.matrix.rows import read_row

    texts: list[pd.DataFrame] = []
    facts: list[dict[str, Any]] = []
    digest = hashlib.sha256()
    splits = pd.read_parquet(root / "pool.parquet").set_index("example_id")["split"]
    for run in runs_of(root):
        if not run.record.exists():
            continue
        content = run.record.read_bytes()
        digest.update(content)
        record = json.loads(content)
        texts += losses_by_text(run, record.pop("heldout_kl"), splits)
        facts.append(run.identity | facts_of(record))
    frames = {"texts": pd.concat(texts), "runs": pd.DataFrame(facts)}
    precise = root / "base-pool-float32.parquet"
    if precise.exists():
        base = read_row(root / "base-pool.parquet")
        frames["precision"] = pd.DataFrame(
            {
                "example_id": base.example_ids,
                "autocast": base.loss_after,
                "float32": read_row(precise).loss_after,
            }
        )
    made_by = {
        "versions": models.versions(),
        "model": models.card(model).get("weights"),
        "sha256": digest.hexdigest(),
        "settings": {
            "experiment": "keep-chats",
            "steps": STEPS,
            "batch": BATCH,
            "max_tokens": MAX_TOKENS,
            "ratio": RATIO,
            "learning_rate": LEARNING_RATE,
            "rehearsals": REHEARSALS,
            "pool": POOL,
        },
    }
    target.mkdir(parents=True, exist_ok=True)
    for name, frame in frames.items():
        table = pa.Table.from_pandas(frame, preserve_index=False)
        metadata = {b"made_by": json.dumps(made_by, sort_keys=True, default=str).encode()}
        path = target / f"{name}.parquet"
        pq.write_table(table.replace_schema_metadata(metadata), path, compression="zstd")


def parser() -> argparse.ArgumentParser:
    """The command line of this benchmark."""
    line = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    line.add_argument("model", help="folder or id of SmolLM2-135M-Instruct")
    line.add_argument("--folder", type=Path, required=True, help="folder of the runs' files")
    line.add_argument("--threads", type=int, default=1)
    line.add_argument("--method", choices=METHODS, help="only the runs of this method")
    line.add_argument("--tables", type=Path, help="write the tables of finished runs, and stop")
    return line


def main() -> None:
    """Makes the runs that are missing, or writes the tables."""
    settings = parser().parse_args()
    if settings.tables is not None:
        write_tables(settings.folder, settings.tables, settings.model)
        return
    # Imported before the processes fork, so that they share it. Nothing computes here.
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import trl  # noqa: F401

    context = multiprocessing.get_context("fork")
    process = context.Process(
        target=prepare, args=(settings.model, settings.folder, settings.threads)
    )
    start_and_wait(process)
    for run in runs_of(settings.folder):
        if run.record.exists() or settings.method not in (None, run.method):
            continue
        began = time.perf_counter()
        start_and_wait(
            context.Process(target=carry_out, args=(run, settings.model, settings.threads))
        )
        print(f"== {run.folder.name}: {time.perf_counter() - began:.0f} s", flush=True)
    # How much the lower precision changes the losses of the same model.
    options = {"name": "pool", "dtype": "float32", "threads": settings.threads}
    start_and_wait(
        context.Process(target=score_base, args=(settings.model, settings.folder), kwargs=options)
    )


def start_and_wait(process: Any) -> None:
    """Runs a process to its end.

    Raises
    ------
    SystemExit
        If it fails; its own error is on stderr.
    """
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)


if __name__ == "__main__":
    main()
