"""A trained model as a folder that can be stored and shared: a checkpoint without pickles, and its model card.

    model.safetensors   the weights; model.safetensors.sha256 is checked when they are read
    config.json         the network's settings, `ModelConfig.to_dict()`
    tokenizer.json      its tokenizer
    README.md           the model card

`read_checkpoint` accepts such a folder in place of a file. On the Hugging Face hub it is a repository, USER/NAME.
"""
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tokenizers import Tokenizer

from lib.checkpoint.digests import digest_file, write_digests
from lib.checkpoint.strict_loading import State
from lib.segmentation import ModelConfig
from utils import UserError, hub, read_json, sha256_of, write_json
from utils.files import temporary_beside

WEIGHTS, CONFIG, TOKENIZER, CARD = "model.safetensors", "config.json", "tokenizer.json", "README.md"
SHARED_FILES = [WEIGHTS, digest_file(WEIGHTS).name, CONFIG, TOKENIZER, CARD]


def weights_file(path: str | Path) -> Path:
    """The file with the weights of a checkpoint: `path` itself, or the file in a model folder."""
    return Path(path) / WEIGHTS if Path(path).is_dir() else Path(path)


def missing_files(folder: Path) -> list[str]:
    """The required files of a model folder that `folder` lacks."""
    return [name for name in (WEIGHTS, CONFIG, TOKENIZER) if not (folder / name).is_file()]


def read_description(folder: Path) -> dict[str, Any]:
    """The settings and tokenizer in a model folder, as `describe_model` returns them. Raises `UserError`."""
    if missing := missing_files(folder):
        raise UserError(f"{folder} is a folder without {', '.join(missing)}: give a checkpoint file, or a folder that "
                        "tools/export.py --to folder wrote")
    try:
        tokenizer = (folder / TOKENIZER).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{folder / TOKENIZER} cannot be read: {error}") from error
    return {"config": read_json(folder / CONFIG), "tokenizer": tokenizer}


def write_folder(folder: Path, state: State, config: ModelConfig, tokenizer: Tokenizer, card: str) -> None:
    """Writes a model folder whole or not at all.

    Raises `UserError` if the folder exists and is not empty, or if it cannot be written.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"--out {folder} exists already: give another name, or remove it first")
    temporary = temporary_beside(folder)
    try:
        temporary.mkdir(parents=True)
        save_file({name: value.contiguous() for name, value in state.items()}, temporary / WEIGHTS, {"format": "pt"})
        write_digests(temporary / WEIGHTS, [sha256_of(temporary / WEIGHTS)])
        write_json(temporary / CONFIG, config.to_dict())
        (temporary / TOKENIZER).write_text(tokenizer.to_str(), encoding="utf-8")
        (temporary / CARD).write_text(card, encoding="utf-8")
        temporary.replace(folder)
    except Exception as error:   # a full disk raises OSError or an error of safetensors
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"--out {folder} cannot be written: {error}") from error


def fetch_folder(name: str) -> Path:
    """The model folder of the hub's repository USER/NAME, from this machine's cache or else from the hub.

    Raises `UserError` if neither has it.
    """
    def read(local_only: bool) -> Path:
        from huggingface_hub import snapshot_download
        folder = Path(snapshot_download(name, allow_patterns=SHARED_FILES, local_files_only=local_only))
        if missing := missing_files(folder):   # the repository is cached in part, or is no model folder
            raise FileNotFoundError(", ".join(missing))
        return folder

    return hub.load("from_pretrained", name, read, "no such folder or file, and neither this machine's cache nor the "
                    "Hugging Face hub provided a model folder of that name")


def push_folder(folder: Path, name: str) -> str:
    """Uploads a model folder to the hub's repository USER/NAME, creates it as private, and returns its address.

    Raises `UserError` if the hub does not answer, does not know the user, or refuses the upload.
    """
    try:
        from huggingface_hub import HfApi
        client = HfApi()
        client.create_repo(name, private=True, exist_ok=True)
        return str(client.upload_folder(repo_id=name, folder_path=folder, allow_patterns=SHARED_FILES,
                                        commit_message="Model folder of tools/export.py"))
    except Exception as error:   # the client raises errors of its own and of its HTTP library
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"--push {name}: the Hugging Face hub refused {folder}, which is kept: {reason} (`hf auth "
                        "login` logs this machine in)") from error
