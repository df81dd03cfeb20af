"""`lethe score`: the losses of a model on a pool, before and after a fine-tune."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lethe.cli.options import AsJson, ModelName, OutputFile, PoolFile
from lethe.cli.output import print_json

Adapter = Annotated[
    Path | None,
    typer.Option("--adapter", metavar="DIR", help="Folder of a PEFT adapter of this model."),
]


def measure_losses(
    model: ModelName,
    pool: PoolFile,
    output: OutputFile,
    adapter: Adapter = None,
    base: Annotated[
        Path | None,
        typer.Option(
            "--base",
            metavar="FILE",
            help="Losses of the untouched base model: its settings are used, and the file holds "
            "what was forgotten.",
        ),
    ] = None,
    tokens: Annotated[
        bool,
        typer.Option(
            "--tokens",
            help="Also write the losses of single tokens: to a.tokens.parquet if -o is a.parquet.",
        ),
    ] = False,
    max_tokens: Annotated[
        int, typer.Option(min=2, help="Tokens of the longest example; longer ones are cut.")
    ] = 1024,
    include_eos: Annotated[
        bool, typer.Option("--include-eos", help="Score the end of an answer too.")
    ] = False,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, or autocast (computation in bfloat16).")
    ] = "float32",
    tokens_per_batch: Annotated[
        str, typer.Option(help="Tokens per batch; auto: as many as fit on the GPU.")
    ] = "auto",
    quantize: Annotated[
        str | None, typer.Option(help="4bit: weights in 4 bits (CUDA and bitsandbytes).")
    ] = None,
    chat_template: Annotated[
        str, typer.Option(help="own, none, a .jinja file, or a model whose template is used.")
    ] = "own",
    revision: Annotated[str | None, typer.Option(help="Commit of a model on the hub.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all by default.")] = None,
    as_json: AsJson = False,
) -> None:
    r"""Measure the loss of a model on every example of a pool.

    Score the untouched base model first, then the fine-tuned model or its adapter, and compare the
    two files with lethe compare. The file is that of the workflow's base losses: nats per scored
    token, with the settings, versions and hashes of the model. You can stop it any time and run it
    again; it continues from its last checkpoint (every ten minutes, LETHE_CHECKPOINT_MINUTES, and
    on SIGTERM). A finished file is never measured again or overwritten.

    Examples::

      lethe score HuggingFaceTB/SmolLM2-135M-Instruct --pool pool.parquet -o base.parquet
      lethe score HuggingFaceTB/SmolLM2-135M-Instruct --adapter lora/ --pool pool.parquet \
        --base base.parquet -o after.parquet
      lethe score tuned/ --pool pool.parquet --base base.parquet -o after.parquet
    """
    # Imported here so that `lethe --help` answers at once.
    import os

    import numpy as np
    import torch

    from lethe.engine import models
    from lethe.files import cache_folder
    from lethe.matrix.row_description import describe_file
    from lethe.measure.model_lookup import find_model
    from lethe.measure.score_pool import ModelToScore, score_pool

    scoring = _scoring(
        max_tokens=max_tokens,
        include_eos=include_eos,
        dtype=dtype,
        tokens_per_batch=tokens_per_batch,
    )
    if quantize not in (None, "4bit"):
        raise typer.BadParameter(f"--quantize is {quantize}; 4bit is the only kind")
    # Whether torch knows CUDA at all. Whether there is a GPU is asked after this process has taken
    # one: CUDA reads CUDA_VISIBLE_DEVICES only once.
    gpus = int(torch.backends.cuda.is_built())
    models.use_machine(threads or os.cpu_count() or 1, gpus)
    card = find_model(
        model, cache=Path(cache_folder()), revision=revision, chat_template=chat_template
    )
    row = score_pool(
        ModelToScore(card=card, adapter=adapter, quantize=quantize),
        pool,
        output,
        scoring=scoring,
        base=base,
        tokens=tokens,
        gpus=gpus,
    )
    (description,) = describe_file(output)
    if as_json:
        print_json(description.as_dict() | {"mean_loss": float(np.nanmean(row.loss_after))})
        return
    missing = int(np.isnan(row.loss_after).sum())
    print(
        f"{output}: {len(row.example_ids)} examples, mean loss {np.nanmean(row.loss_after):.4f} "
        f"nats per token, {row.about['truncated']} cut at {_longest(row)} tokens, "
        f"{missing} without a loss"
    )
    if base is not None:
        print(f"mean forgetting {np.nanmean(row.forgetting):.4f} nats; lethe compare says where")


def _longest(row: Any) -> int:
    """Tokens of the longest example that the row was scored with."""
    return int(row.settings["scoring"]["max_tokens"])


def _scoring(**values: Any) -> Any:
    """Scoring settings; a wrong value is a wrong use of the command."""
    from pydantic import ValidationError

    from lethe.config.model_settings import Scoring

    batch = values["tokens_per_batch"]
    # Superscripts are digits too, but int() reads none of them.
    is_number = batch.isascii() and batch.isdecimal()
    values["tokens_per_batch"] = int(batch) if is_number else batch
    try:
        return Scoring(**values)
    except ValidationError as error:
        problem = error.errors()[0]
        name = "--" + str(problem["loc"][0]).replace("_", "-")
        raise typer.BadParameter(f"{name} {problem['input']}: {problem['msg']}")
