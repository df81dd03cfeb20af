"""Chats as token ids and labels, for trainers that read rows which are tokenised already."""

import json
import logging
from pathlib import Path
from typing import Any

from lethe.data.examples import Example
from lethe.data.tokens import tokenise
from lethe.data.training_rows import read_new_data
from lethe.errors import LetheError

logger = logging.getLogger(__name__)

# The label of a token that carries no loss, as in transformers and trl.
NO_LOSS = -100


def labelled_chats(
    path: Path | str, tokenizer: Any, *, max_tokens: int
) -> list[dict[str, list[int]]]:
    """Reads a file of chats as rows of `input_ids` and `labels`, with loss on every answer.

    trl's `assistant_only_loss` needs a chat template that marks the assistant's turns
    (`{% generation %}`), and many models have none. This function finds the turns in the text of
    any template (`lethe.data.chat_masks`). trl trains on such rows as they are:

        rows = labelled_chats("chats.jsonl", tokenizer, max_tokens=1024)
        trainer = SFTTrainer(model, train_dataset=Dataset.from_list(rows))

    Parameters
    ----------
    path
        Chats as messages, ShareGPT or Alpaca, as `lethe mix` reads and writes them.
    tokenizer
        Tokenizer of the model, with its chat template.
    max_tokens
        Tokens of the longest row, at least 2; longer chats lose their end, as in trl.

    Returns
    -------
    One row per chat that has a token with loss; labels of other tokens are -100. Chats that lose
    their end, chats without a row, and everything that is left out or not read are counted in
    warnings.

    Raises
    ------
    LetheError
        If the file cannot be read, holds no chats, the template refuses a chat (with its file and
        line), no chat has an answer within `max_tokens` tokens, or `max_tokens` is below 2.
    """
    path = Path(path)
    if max_tokens < 2:
        raise LetheError(
            f"labelled_chats: max_tokens is {max_tokens}; a row has at least 2 tokens, because the "
            "first one carries no loss"
        )
    data = read_new_data(path)
    if data.form != "messages":
        raise LetheError(
            f"{path}: its rows are {data.form}, which need no chat template; trl reads the file "
            "itself (load_dataset('json', data_files=...))"
        )
    conversations = map(_as_conversation, data.examples)
    tokenised = tokenise(
        tokenizer,
        conversations,
        max_tokens=max_tokens,
        truncation="right",
        origins=data.origins,
    )
    rows = []
    lost = 0
    for tokens in tokenised.examples:
        if not tokens.scored:
            # A chat that was cut fills its row.
            lost += len(tokens.ids) == max_tokens
            continue
        labels = []
        for token, carries_loss in zip(tokens.ids, tokens.loss_mask, strict=True):
            labels.append(token if carries_loss else NO_LOSS)
        rows.append({"input_ids": list(tokens.ids), "labels": labels})
    if not rows:
        raise LetheError(
            f"{path}: none of its {len(data.examples)} chats has an answer within {max_tokens} "
            "tokens; raise max_tokens"
        )
    logger.log(logging.WARNING if data.leaves_out else logging.INFO, "%s: %s", path, data.summary)
    if tokenised.truncated:
        logger.warning(
            "%s: %d of %d chats are longer than %d tokens and lose their end, %d of them with all "
            "their answers; raise max_tokens to keep them whole",
            path,
            tokenised.truncated,
            len(data.examples),
            max_tokens,
            lost,
        )
    if len(rows) < len(data.examples):
        logger.warning(
            "%s: left out %d of %d chats, which have no answer within %d tokens",
            path,
            len(data.examples) - len(rows),
            len(data.examples),
            max_tokens,
        )
    return rows


def _as_conversation(example: Example) -> Example:
    """The same chat as a conversation, also if it is a single question with its answer.

    Only for conversations does the tokeniser read the template's own marks.
    """
    if example.chat is not None:
        return example
    turns, _ = example.conversation()
    chat = json.dumps({"messages": turns}, ensure_ascii=False)
    return Example(example.prompt, example.answer, chat=chat)
