"""The only place where files of a model, tokenizer, template lender or encoder are loaded.

Python code that comes with them is never run, unless the experiment allows it for that entry.
Weights are read from safetensors only. Every error becomes one line that names the entry.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedConfig

from lethe.engine.model_files import refuse_pointers
from lethe.errors import LetheError, one_line


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A folder or hub id whose files are loaded.

    Attributes
    ----------
    name
        Begins every error, such as `model org/name`.
    path
        Folder, or id on the hub.
    revision
        Branch, tag or commit on the hub.
    run_code
        Whether Python code that comes with the files may run.
    code_advice
        The next step if the files bring such code and it may not run.
    advice
        The next step after any other error.
    downloaded_only
        Read the local cache of the hub only, because the hub does not answer.
    """

    name: str
    path: str
    revision: str | None = None
    run_code: bool = False
    code_advice: str = "name another model"
    advice: str = ""
    downloaded_only: bool = False

    def load_tokenizer(self, **options: Any) -> Any:
        """Loads the tokenizer.

        Raises
        ------
        LetheError
            If it cannot be loaded, for whatever reason.
        """
        with self._errors_named(self.name):
            return AutoTokenizer.from_pretrained(self.path, **self._access(), **options)

    def load_network(self, auto_class: Any, *, attention: str | None = None, **options: Any) -> Any:
        """Loads the weights into the network that config.json describes.

        Parameters
        ----------
        auto_class
            transformers' class that chooses the network, such as `AutoModelForCausalLM`.
        attention
            How attention is computed; None: as transformers chooses.
        options
            More arguments of `from_pretrained`.

        Returns
        -------
        The network, or whatever `from_pretrained` returns with these options.

        Raises
        ------
        LetheError
            If it cannot be loaded, for whatever reason.
        """
        name = self.name if attention is None else f"{self.name}, attention {attention}"
        with self._errors_named(name):
            self._refuse_kernels()
            return auto_class.from_pretrained(
                self.path, attn_implementation=attention, **self._access(), **options
            )

    def load_adapter(self, model: Any) -> Any:
        """Wraps a model with the adapter (PEFT) in these files; it is not trained.

        Raises
        ------
        LetheError
            If the adapter does not fit the model.
        """
        from peft import PeftModel

        failure = f"does not fit the model {model.name_or_path}"
        with self._errors_named(self.name, failure):
            return PeftModel.from_pretrained(model, self.path, is_trainable=False)

    def _access(self) -> dict[str, Any]:
        access: dict[str, Any] = {"trust_remote_code": self.run_code, "revision": self.revision}
        if self.downloaded_only:
            access["local_files_only"] = True
        return access

    def _refuse_kernels(self) -> None:
        """Refuses a config.json that names a kernel of the hub: transformers would run its code."""
        if self.run_code:
            return
        content, _ = PreTrainedConfig.get_config_dict(self.path, **self._access())
        for key, kernel in _kernels(content):
            raise LetheError(
                f"{self.name}: its config.json sets {key} to {kernel!r}, which is code on the hub "
                f"that is not run; {self.code_advice}"
            )

    @contextmanager
    def _errors_named(self, name: str, failure: str = "cannot be loaded") -> Iterator[None]:
        """Turns every error of reading the files, which may hold anything, into a LetheError."""
        if Path(self.path).is_dir():
            refuse_pointers(self.path)
        try:
            yield
        except (LetheError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if "trust_remote_code" in str(error):
                raise LetheError(
                    f"{name}: {failure}: it brings Python code of its own, which is not "
                    f"run; {self.code_advice}"
                )
            advice = f". {self.advice}" if self.advice else ""
            raise LetheError(f"{name}: {failure}: {one_line(error)}{advice}")


def _kernels(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys such as attn_implementation, at any depth, with the kernels of the hub they name."""
    for key, value in content.items():
        values = value.values() if isinstance(value, Mapping) else [value]
        if str(key).endswith("_implementation"):
            for implementation in values:
                if "/" in str(implementation):
                    yield str(key), str(implementation)
        elif isinstance(value, Mapping):
            yield from _kernels(value)
